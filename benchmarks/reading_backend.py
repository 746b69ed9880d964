"""The plain backend without a model's work: reads every byte that a rank is given.

A plug-in (`learner.backend: benchmarks.reading_backend:ReadingBackend`): ranks, their data, what
they hash and hand over are real; no model looks at the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.protocol import Loss, Want
from manta.actors.rows import Row


class ReadingBackend(PlainBackend):
    """An update without gradients: the weights move by their decay alone, so that there are others
    to publish after each step."""

    def update(
        self,
        micro_batches: Iterable[Sequence[Row]],
        wants: Sequence[Want],
        temperature: float,
        loss: Loss,
        learning_rate: float,
    ) -> dict[str, float]:
        read = sum(_read(row) for rows in micro_batches for row in rows)
        metrics = super().update((), wants, temperature, loss, learning_rate)
        return {**metrics, "read": read}


def _read(row: Row) -> float:
    assert row.behaviour_logprobs is not None
    return float(row.token_ids.sum() + row.loss_mask.sum() + row.behaviour_logprobs.sum())
