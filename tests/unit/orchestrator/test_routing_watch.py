from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from manta.actors.engine_state import EngineState
from manta.actors.router_figures import EngineFigures, EngineLife, RouterFigures
from manta.envs.records import Json
from manta.orchestrator.publish import NoEngineLeft
from manta.orchestrator.routing_watch import RoutingWatch


def figures(
    waiting: int, lost: tuple[EngineLife, ...] = (), **states: EngineState
) -> RouterFigures:
    engines = {name: EngineFigures(state, 0, 3, 30, 8) for name, state in states.items()}
    return RouterFigures(engines, waiting, 0.0, 0.0, 0, 0, lost)


class Rollout:
    """Says `figures` one after the other, the last one for ever."""

    is_kept = False

    def __init__(self, *figures: RouterFigures) -> None:
        self._figures = list(figures)

    def metrics(self) -> dict[str, float]:
        return {"pool/rollout/serving": 2.0}

    async def figures(self) -> RouterFigures:
        return self._figures.pop(0) if len(self._figures) > 1 else self._figures[0]


class Notes:
    def __init__(self, *said: RouterFigures) -> None:
        self.shown: list[RouterFigures] = []
        self.pools: list[Mapping[str, float]] = []
        self.events: list[tuple[str, Mapping[str, Json]]] = []
        self.rollout = Rollout(*said)
        self.watch = RoutingWatch(
            self.rollout,  # type: ignore[arg-type]
            self.shown.append,
            lambda name, fields: self.events.append((name, fields)),
            self.pools.append,
        )


async def test_an_engine_that_is_lost_is_an_event_once_in_each_life() -> None:
    first, second = EngineLife("a", 0), EngineLife("a", 1)
    said = [
        figures(0, a="serving"),
        figures(1, (first,), a="gone", b="serving"),
        figures(1, (first,), a="serving", b="serving"),
        figures(1, (first, second), a="gone", b="serving"),
    ]
    notes = Notes(*said)
    for _ in said:
        await notes.watch.look()
    assert notes.shown == said
    assert notes.pools[-1] == {"pool/rollout/serving": 2.0}
    assert notes.events == [
        ("engine lost", {"engine": "a", "life": 0}),
        ("engine lost", {"engine": "a", "life": 1}),
    ]


async def test_calls_that_wait_in_vain_end_the_run() -> None:
    notes = Notes(figures(2, (EngineLife("a", 0),), a="gone", b="gone"))
    with pytest.raises(NoEngineLeft, match="2 calls wait for an engine and none is left: a, b"):
        await asyncio.wait_for(notes.watch.run(), 5)
    assert notes.events == [("engine lost", {"engine": "a", "life": 0})]


@pytest.mark.parametrize("state", ["joining", "serving", "paused", "draining"])
async def test_an_engine_that_may_serve_is_worth_waiting_for(state: EngineState) -> None:
    notes = Notes(figures(2, a="gone", b=state))
    await notes.watch.look()
    assert notes.events == []


async def test_where_engines_are_replaced_calls_wait_for_the_new_ones() -> None:
    notes = Notes(figures(2, a="gone", b="gone"))
    notes.rollout.is_kept = True
    await notes.watch.look()
    assert len(notes.shown) == 1


async def test_a_run_that_asks_for_nothing_needs_no_engine() -> None:
    notes = Notes(figures(0, a="gone"))
    await notes.watch.look()
    assert len(notes.shown) == 1
