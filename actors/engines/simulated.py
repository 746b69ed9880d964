"""The simulated engine: the protocol without a model, on a clock that gives every row its tokens.

For measuring everything around an engine. Lengths, tokens and log-probs are functions of seed
and of the weights' hash (of the prompt only lengths, as far as the settings say so); only when they
arrive depends on time. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
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
from manta.actors.engines.progress import Progress
from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.token_clock import TokenClock
from manta.actors.weights import Receipt, Weights, content_hash
from manta.envs.records import (
    Completion,
    FinishReason,
    Float32,
    GenerateRequest,
    Int32,
    VersionSpan,
    WeightVersion,
)
from manta.envs.side_by_side import side_by_side, until_enough


@dataclass(frozen=True, slots=True)
class _Served:
    """From running second `since` on, `version` is served; `salt` stands for its bytes."""

    since: float
    version: WeightVersion
    salt: int


@dataclass(slots=True, eq=False)
class _Row:
    """Sample `sample` of `request`: it begins at running second `begin` and gets `length` tokens,
    the last of which is a stop token if `is_stopped`; unless it is cut, at running second `cut`."""

    request: GenerateRequest
    sample: int
    begin: float | None = None
    cut: float | None = None
    length: int = 0
    is_stopped: bool = False
    is_done: bool = False

    @property
    def seed(self) -> int:
        return self.request.seeds[self.sample]

    @property
    def budget(self) -> int:
        return self.request.budgets[self.sample]

    @property
    def has_ended(self) -> bool:
        return self.is_done or self.cut is not None


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
        clock: TokenClock | None = None,
    ) -> None:
        self._occupancy = occupancy or Occupancy(max_rows)
        self._settings = settings
        self._vocab_size = vocab_size
        self._context = context
        self._clock = clock or TokenClock()
        self._rows = asyncio.Semaphore(max_rows)
        self._served = [_Served(0.0, version, 0)]

    @property
    def version(self) -> WeightVersion:
        return self._served[-1].version

    async def generate(
        self, requests: Sequence[GenerateRequest], progress: Progress | None = None
    ) -> list[list[Completion]]:
        for request in requests:
            check_request(request, self._context)
        rows = [[_Row(r, sample) for sample in range(len(r.seeds))] for r in requests]

        async def so_far() -> list[list[Completion]]:
            return [[self._so_far(row) for row in of_request] for of_request in rows]

        if progress is not None:
            flat = [row for of_request in rows for row in of_request]
            progress.bind(so_far, lambda: sum(row.has_ended for row in flat))
        await side_by_side(
            [
                until_enough([self._run(row) for row in of_request], r.enough or len(of_request))
                for r, of_request in zip(requests, rows, strict=True)
            ]
        )
        return await so_far()

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

    async def _run(self, row: _Row) -> None:
        """Lets the clock give `row` its tokens, once it is its turn."""
        prefix, drawn = row.request.prefix, row.request.drawn
        whole = sampled_length(self._settings, row.seed, prefix[: len(prefix) - drawn])
        length = max(1, whole - drawn)
        row.is_stopped = length <= row.budget
        row.length = min(length, row.budget)
        try:
            async with self._rows:
                row.begin = self._clock.now()
                seconds = row.length / self._settings.tokens_per_second
                self._occupancy.add(1)
                try:
                    await self._clock.sleep_until(row.begin + seconds)
                finally:
                    self._occupancy.add(-1)
                    self._tell_of(row)
        except asyncio.CancelledError:
            row.cut = self._clock.now()
            raise
        row.is_done = True

    def _tell_of(self, row: _Row) -> None:
        """Each row goes at its own pace, as if it were alone."""
        assert row.begin is not None
        speed = self._settings.tokens_per_second
        made = min(row.length, round((self._clock.now() - row.begin) * speed))
        self._occupancy.decoded(1, 1.0 / speed, made)

    def _so_far(self, row: _Row) -> Completion:
        """`row` as it stands; its last token comes when it is done."""
        if row.begin is None:
            return Completion(np.zeros(0, np.int32), np.zeros(0, np.float32), (), "abort")
        now = self._clock.now() if row.cut is None else row.cut
        passed = math.floor((now - row.begin) * self._settings.tokens_per_second)
        count = row.length if row.is_done else min(passed, row.length - 1)
        stops = row.request.sampling.stop_token_ids
        tokens = self._tokens(row.seed, row.request.drawn, count, stops)
        if row.is_done and row.is_stopped and stops:
            tokens[-1] = stops[0]
        spans, logprobs = self._under_way(tokens, row.begin)
        reason: FinishReason = "stop" if row.is_stopped else "length"
        return Completion(tokens, logprobs, spans, reason if row.is_done else "abort")

    def _tokens(self, seed: int, first: int, length: int, stops: tuple[int, ...]) -> Int32:
        """int32[T], none of them a stop token: number `first` and on of the seed's stream."""
        excluded = sorted({stop for stop in stops if stop < self._vocab_size})
        draws = uniform(seed_tensor((seed,)), torch.arange(first, first + length)).numpy()
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


def sampled_length(settings: SimulatedSettings, seed: int, prompt: Int32 | None = None) -> int:
    """Tokens of the sample `seed` of `prompt` before its budget cuts it, at least 1."""
    normal, share = _normal(seed), settings.length_prompt_share
    if share > 0.0 and prompt is not None:
        digest = hashlib.sha256(prompt.astype(np.int32).tobytes()).digest()
        of_prompt = _normal(int.from_bytes(digest[:8], "little"))
        normal = math.sqrt(1.0 - share) * normal + math.sqrt(share) * of_prompt
    log_length = math.log(settings.length_median) + settings.length_sigma * normal
    return max(1, round(math.exp(min(log_length, 40.0))))


def _normal(seed: int) -> float:
    """A standard normal number by `seed`."""
    draw = float(uniform(seed_tensor((seed,)), torch.tensor([-1])))
    return NormalDist().inv_cdf(max(draw, 2.0**-53))


def _logprobs(tokens: Int32, salt: int) -> Float32:
    """float32[T] in (-2, 0], by token and `salt`."""
    draws = uniform(seed_tensor((salt,)), torch.from_numpy(tokens.astype(np.int64)))
    return (-2.0 * draws.numpy()).astype(np.float32)
