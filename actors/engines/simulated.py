"""The simulated engine: the protocol without a model, on a clock that gives every row its tokens.

For measuring everything around an engine. Lengths, tokens and log-probs are functions of seed
and of the weights' hash (not of the prompt); only when they arrive depends on time. Belongs to one
event loop.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from manta.actors.engines.draws import seed_tensor, uniform
from manta.actors.engines.limits import check_request
from manta.actors.engines.occupancy import Occupancy
from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.token_clock import TokenClock
from manta.actors.weights import Receipt, Weights, content_hash
from manta.envs.records import (
    Completion,
    Float32,
    GenerateRequest,
    Int32,
    VersionSpan,
    WeightVersion,
)


@dataclass(frozen=True, slots=True)
class _Served:
    """From running second `since` on, `version` is served; `salt` stands for its bytes."""

    since: float
    version: WeightVersion
    salt: int


class SimulatedEngine:
    """`max_rows` rows side by side, each at `settings.tokens_per_second`.

    A sample's length is lognormal by its seed, at least 1; one longer than its budget ends there
    with reason `length`, any other ends with a stop token where the request names some. A token's
    log-prob lies between -2 and 0 and follows from the token and the weights alone, so scoring
    a sample gives what generating it gave.
    """

    def __init__(
        self,
        settings: SimulatedSettings,
        vocab_size: int,
        context: int,
        max_rows: int,
        version: WeightVersion,
        occupancy: Occupancy | None = None,
    ) -> None:
        self._occupancy = occupancy or Occupancy(max_rows)
        self._settings = settings
        self._vocab_size = vocab_size
        self._context = context
        self._clock = TokenClock()
        self._rows = asyncio.Semaphore(max_rows)
        self._served = [_Served(0.0, version, 0)]

    @property
    def version(self) -> WeightVersion:
        return self._served[-1].version

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        for request in requests:
            check_request(request, self._context)
        rows = [
            self._row(request, sample)
            for request in requests
            for sample in range(len(request.seeds))
        ]
        done = iter(await asyncio.gather(*rows))
        return [[next(done) for _ in request.seeds] for request in requests]

    async def logprobs(self, rows: Sequence[Int32]) -> list[Float32]:
        scored = [_logprobs(row, self._served[-1].salt) for row in rows]
        for row in scored:
            row[0] = 0.0
        return scored

    async def pause(self) -> None:
        self._clock.halt()

    async def resume(self) -> None:
        self._clock.go_on()

    async def load(self, weights: Weights) -> Receipt:
        """Hashes `weights`; bytes that do not match their hash are refused, and the receipt shows
        it. Raises RuntimeError while running."""
        if not self._clock.is_halted:
            raise RuntimeError("load() while running: call pause() first")
        receipt = Receipt(weights.version, content_hash(weights.specs, weights.data))
        if receipt.sha256 == weights.sha256:
            salt = int(receipt.sha256[:16], 16)
            self._served.append(_Served(self._clock.now(), weights.version, salt))
        return receipt

    async def _row(self, request: GenerateRequest, sample: int) -> Completion:
        seed, budget = request.seeds[sample], request.budgets[sample]
        length = sampled_length(self._settings, seed)
        async with self._rows:
            begin = self._clock.now()
            seconds = min(length, budget) / self._settings.tokens_per_second
            self._occupancy.add(1)
            try:
                await self._clock.sleep_until(begin + seconds)
            finally:
                self._occupancy.add(-1)
        is_stopped = length <= budget
        stops = request.sampling.stop_token_ids if is_stopped else ()
        tokens = self._tokens(seed, min(length, budget), request.sampling.stop_token_ids)
        if stops:
            tokens[-1] = stops[0]
        spans, logprobs = self._under_way(tokens, begin)
        return Completion(tokens, logprobs, spans, "stop" if is_stopped else "length")

    def _tokens(self, seed: int, length: int, stops: tuple[int, ...]) -> Int32:
        """int32[T], none of them a stop token."""
        excluded = sorted({stop for stop in stops if stop < self._vocab_size})
        draws = uniform(seed_tensor((seed,)), torch.arange(length)).numpy()
        tokens: Int32 = (draws * (self._vocab_size - len(excluded))).astype(np.int32)
        for stop in excluded:
            tokens += tokens >= stop
        return tokens

    def _under_way(self, tokens: Int32, begin: float) -> tuple[tuple[VersionSpan, ...], Float32]:
        """Versions and log-probs of tokens that began to arrive at running second `begin`."""
        first = bisect_right(self._served, begin, key=lambda served: served.since) - 1
        spans: list[VersionSpan] = []
        logprobs = np.zeros(len(tokens), np.float32)
        for served in self._served[max(0, first) :]:
            passed = (served.since - begin) * self._settings.tokens_per_second
            # A moment that a clock's rounding puts just before a token's arrival is its arrival
            start = max(0, math.floor(passed + 1e-6))
            if start >= len(tokens):
                break
            if spans and spans[-1].start == start:
                spans.pop()
            spans.append(VersionSpan(start, served.version))
            logprobs[start:] = _logprobs(tokens[start:], served.salt)
        return tuple(spans), logprobs


def sampled_length(settings: SimulatedSettings, seed: int) -> int:
    """Tokens of the sample `seed` before its budget cuts it, at least 1."""
    draw = float(uniform(seed_tensor((seed,)), torch.tensor([-1])))
    normal = NormalDist().inv_cdf(max(draw, 2.0**-53))
    log_length = math.log(settings.length_median) + settings.length_sigma * normal
    return max(1, round(math.exp(min(log_length, 40.0))))


def _logprobs(tokens: Int32, salt: int) -> Float32:
    """float32[T] in (-2, 0], by token and `salt`."""
    draws = uniform(seed_tensor((salt,)), torch.from_numpy(tokens.astype(np.int64)))
    return (-2.0 * draws.numpy()).astype(np.float32)
