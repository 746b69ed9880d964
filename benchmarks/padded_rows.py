"""The same rows trained in three layouts: padded in random order, padded by length, and packed.

Owns what a side of `benchmarks.learner` does in one update; each has a model and an optimizer of
its own, equal at the start. Times nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from manta.actors.backends.flat import FlatParameters
from manta.actors.backends.optimizer import FlatOptimizer
from manta.actors.backends.settings import LearnerSettings, Precision
from manta.actors.micro_batches import micro_batches, padded_batches
from manta.actors.models.layout import side_by_side
from manta.actors.models.policy import evaluate
from manta.actors.models.precision import computing
from manta.actors.models.vocabulary import token_statistics
from manta.actors.rows import Row

Evaluate: TypeAlias = Callable[[nn.Module, Sequence[Row]], Tensor]
Cut: TypeAlias = Callable[[Sequence[Row], int, np.random.Generator], list[list[Row]]]


class Side:
    """One way to train on rows."""

    def __init__(
        self, model: nn.Module, evaluate: Evaluate, cut: Cut, precision: Precision = "fp32"
    ) -> None:
        self._model, self._evaluate, self._cut = model, evaluate, cut
        self._precision = precision
        self._flat = FlatParameters(model)
        self._optimizer = FlatOptimizer(LearnerSettings(), self._flat)
        self._random = np.random.default_rng(0)

    def update(self, rows: Sequence[Row], budget: int) -> float:
        """One update by the mean log-prob of all trained tokens; returns it."""
        self._flat.zero_gradient()
        tokens = sum(row.num_tokens for row in rows)
        total = 0.0
        for batch in self._cut(rows, budget, self._random):
            with computing(self._model, self._precision):
                logprob_T = self._evaluate(self._model, batch)
            mean = logprob_T.sum() / tokens
            (-mean).backward()  # type: ignore[no-untyped-call]
            total += mean.item()
        self._flat.clip(1.0)
        self._optimizer.step(1e-5)
        self._flat.publish()
        return total

    def gradient(self) -> Tensor:
        return self._flat.gradient.clone()


def sides(build: Callable[[], nn.Module]) -> Mapping[str, Side]:
    """By name; `build` makes equal models."""
    return {
        "padded, random order": Side(build(), padded, random_cut),
        "padded, by length": Side(build(), padded, cut_by_length),
        "packed": Side(build(), packed, packed_cut),
    }


def random_cut(rows: Sequence[Row], budget: int, random: np.random.Generator) -> list[list[Row]]:
    """In random order, each batch as many rows as fit with their padding into `budget`."""
    batches: list[list[Row]] = [[]]
    longest = 0
    for index in random.permutation(len(rows)):
        length = len(rows[index].token_ids)
        if batches[-1] and (len(batches[-1]) + 1) * max(longest, length) > budget:
            batches.append([])
            longest = 0
        batches[-1].append(rows[index])
        longest = max(longest, length)
    return batches


def cut_by_length(rows: Sequence[Row], budget: int, _: np.random.Generator) -> list[list[Row]]:
    """What models get whose attention cannot be packed: the cut with the least padding."""
    return [part for batch in micro_batches(rows, budget) for part in padded_batches(batch)]


def packed_cut(rows: Sequence[Row], budget: int, _: np.random.Generator) -> list[list[Row]]:
    return micro_batches(rows, budget)


def packed(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    return evaluate(model, rows, ("logprob",), 1.0)["logprob"]


def padded(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    layout = side_by_side(rows)
    body = cast(nn.Module, model.base_model)
    states_BLD = body(input_ids=layout.tokens, use_cache=False).last_hidden_state
    hidden_TD = states_BLD.flatten(0, 1).index_select(0, layout.positions_T)
    head = cast(nn.Linear, model.get_output_embeddings())  # type: ignore[operator]
    found = token_statistics(hidden_TD, head.weight, None, layout.targets_T, 1.0, ("logprob",))
    return found["logprob"]


def rows_of_lengths(lengths: Sequence[int], prompt: int, vocabulary: int) -> list[Row]:
    """Random tokens; those after `prompt` are trained."""
    random = np.random.default_rng(0)
    return [
        Row(
            index,
            random.integers(0, vocabulary, prompt + length).astype(np.int32),
            np.arange(prompt + length) >= prompt,
            None,
            None,
            {},
        )
        for index, length in enumerate(lengths)
    ]


def relative_gap(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))
