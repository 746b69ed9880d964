"""The driver's look at the router: figures for metrics and display, events for engines lost.

Owns how often it looks. Ends a run whose calls wait for engines of which none is left, and of
which none is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from manta.actors.router_figures import EngineLife, RouterFigures
from manta.envs.records import Json
from manta.orchestrator.publish import EnginesDied
from manta.orchestrator.rollout_pool import RolloutPool

_SECONDS = 1.0


class RoutingWatch:
    """`show` gets every new figure of the router, `show_pool` those of the pool, `event` each
    engine that died under a call, once."""

    def __init__(
        self,
        rollout: RolloutPool,
        show: Callable[[RouterFigures], None],
        event: Callable[[str, Mapping[str, Json]], None],
        show_pool: Callable[[Mapping[str, float]], None],
    ) -> None:
        self._show_pool = show_pool
        self._rollout, self._show, self._event = rollout, show, event
        self._told: set[EngineLife] = set()

    async def run(self) -> None:
        """Looks once a second, until cancelled. Raises EnginesDied where calls wait in vain."""
        while True:
            await self.look()
            await asyncio.sleep(_SECONDS)

    async def look(self) -> None:
        figures = await self._rollout.figures()
        for life in figures.lost:
            if life not in self._told:
                self._told.add(life)
                self._event("engine lost", {"engine": life.engine, "life": life.generation})
        self._show(figures)
        self._show_pool(self._rollout.metrics())
        if self._rollout.is_kept:
            return
        if figures.waiting and all(e.state == "gone" for e in figures.engines.values()):
            raise EnginesDied(
                f"{figures.waiting} calls wait for an engine and none is left: "
                f"{', '.join(figures.engines)} died or were taken out of service. Look at their "
                "logs in the Ray session directory, then start the run again"
            )
