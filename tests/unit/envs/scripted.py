"""A scripted engine and trajectories by hand: the fakes of the environment tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from manta.envs.protocols import Tokenizer
from manta.envs.records import (
    Completion,
    FinishReason,
    GenerateRequest,
    Task,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from manta.envs.transcript import given_trajectory

ABORT = "<abort>"


class ScriptedEngine:
    """Says `script(call, sample)` plus the end token, cut at the budget; ABORT aborts.

    Log-probs are -1, -2, ... over a completion. The first half of it is sampled under the weights
    of `versions[call]`, the rest under those of the next call.
    """

    def __init__(self, tokenizer: Tokenizer, script: Callable[[int, int], str]) -> None:
        self.requests: list[GenerateRequest] = []
        self._tokenizer = tokenizer
        self._script = script

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        answers: list[list[Completion]] = []
        for request in requests:
            call = len(self.requests)
            self.requests.append(request)
            answers.append(
                [
                    self._complete(self._script(call, sample), budget, call)
                    for sample, budget in enumerate(request.budgets)
                ]
            )
        return answers

    def _complete(self, text: str, budget: int, call: int) -> Completion:
        if text == ABORT:
            return Completion(np.zeros(0, np.int32), np.zeros(0, np.float32), (), "abort")
        ids = [*self._tokenizer.encode(text), self._tokenizer.eos_id]
        reason: FinishReason = "stop" if len(ids) <= budget else "length"
        ids = ids[:budget]
        half = (len(ids) + 1) // 2
        spans = [VersionSpan(0, WeightVersion(call, 0))]
        if half < len(ids):
            spans.append(VersionSpan(half, WeightVersion(call + 1, 0)))
        return Completion(
            np.array(ids, np.int32),
            -np.arange(1, len(ids) + 1, dtype=np.float32),
            tuple(spans),
            reason,
        )


def task(reference: object = "7", name: str = "t", prompt: str = "p") -> Task:
    return Task(id=name, prompt=prompt, reference=reference, env="test")  # type: ignore[arg-type]


def said(text: str, num_tokens: int | None = None) -> Trajectory:
    """A trajectory whose artifact is `text`, with `num_tokens` trained tokens."""
    count = len(text) if num_tokens is None else num_tokens
    return given_trajectory("t", np.zeros(2, np.int32), np.zeros(count, np.int32), text)
