"""The driver's look at the scorers: figures for metrics.

Owns how often it looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import numpy as np

from manta.actors.scoring_queue import QueueFigures
from manta.orchestrator.scorer_pool import ScorerPool

_SECONDS = 1.0


class ScorerWatch:
    """`show` gets every new figure."""

    def __init__(self, scorers: ScorerPool, show: Callable[[Mapping[str, float]], None]) -> None:
        self._scorers, self._show = scorers, show

    async def run(self) -> None:
        """Looks once a second, until cancelled."""
        while True:
            self._show(scorer_metrics(await self._scorers.figures()))
            await asyncio.sleep(_SECONDS)


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
