"""The driver's look at the scorers: figures for metrics, events for workers lost.

Owns how often it looks. Ends a run that has lost all workers of a scorer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import numpy as np

from manta.actors.scoring_queue import QueueFigures
from manta.envs.records import Json
from manta.orchestrator.scorer_pool import ScorerPool

_SECONDS = 1.0


class ScorerWatch:
    """`show` gets every new figure, `event` each worker that died, once."""

    def __init__(
        self,
        scorers: ScorerPool,
        show: Callable[[Mapping[str, float]], None],
        event: Callable[[str, Mapping[str, Json]], None],
    ) -> None:
        self._scorers, self._show, self._event = scorers, show, event
        self._told = 0

    async def run(self) -> None:
        """Looks once a second, until cancelled. Raises NoScorerLeft."""
        while True:
            await self.look()
            await asyncio.sleep(_SECONDS)

    async def look(self) -> None:
        try:
            figures = await self._scorers.figures()
        finally:
            lost, self._told = self._scorers.lost[self._told :], len(self._scorers.lost)
            for name, worker in lost:
                self._event("scorer worker lost", {"scorer": name, "worker": worker})
        self._show(scorer_metrics(figures))


def scorer_metrics(figures: Mapping[str, QueueFigures]) -> dict[str, float]:
    """By flat name: calls answered so far, items that wait, and the median and largest seconds of
    the last calls (none: left out)."""
    metrics: dict[str, float] = {}
    for name, queue in figures.items():
        metrics[f"scorer/{name}/calls"] = float(queue.calls)
        metrics[f"scorer/{name}/queue"] = float(queue.waiting)
        if queue.seconds:
            metrics[f"scorer/{name}/seconds_p50"] = float(np.median(queue.seconds))
            metrics[f"scorer/{name}/seconds_max"] = max(queue.seconds)
    return metrics
