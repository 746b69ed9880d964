"""The plain backend with an update that takes a set time, as on a cluster of a known speed.

A plug-in (`learner.backend: benchmarks.timed_backend:TimedBackend`): the ranks, their data and
their updates are real, only the model is small.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from benchmarks.simulated_cluster import UPDATE_SECONDS
from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.protocol import Loss, Want
from manta.actors.rows import Row


class TimedBackend(PlainBackend):
    """An update ends `UPDATE_SECONDS` after it began."""

    def update(
        self,
        micro_batches: Iterable[Sequence[Row]],
        wants: Sequence[Want],
        temperature: float,
        loss: Loss,
        learning_rate: float,
    ) -> dict[str, float]:
        end = time.monotonic() + UPDATE_SECONDS
        metrics = super().update(micro_batches, wants, temperature, loss, learning_rate)
        time.sleep(max(0.0, end - time.monotonic()))
        return metrics
