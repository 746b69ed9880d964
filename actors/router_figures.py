"""What the router tells of itself: numbers only, the same for metrics, display and events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from manta.actors.engine_state import EngineState

MOST_NAMED = 32
"""Engines that metrics tell one by one."""


class EngineLife(NamedTuple):
    """An engine by name, and which life of it: a name that comes back is another engine."""

    engine: str
    generation: int


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """`rows` and `tokens` are outstanding; `limit` is in rows."""

    state: EngineState
    generation: int
    rows: int
    tokens: int
    limit: int


@dataclass(frozen=True, slots=True)
class RouterFigures:
    """`waiting`: calls that have no engine yet, of `waiting_rows` rows. `wait_p50` and `wait_max`
    are seconds, over the last calls that got one and those that still wait. `retries`: calls asked
    for again after an engine was lost under them; `kept_tokens`: those that such calls went on
    from. `lost`: engines that died under a call."""

    engines: Mapping[str, EngineFigures]
    waiting: int
    wait_p50: float
    wait_max: float
    retries: int
    kept_tokens: int
    lost: tuple[EngineLife, ...]
    waiting_rows: int = 0

    @property
    def rows(self) -> int:
        """Outstanding rows on all engines."""
        return sum(engine.rows for engine in self.engines.values())

    def metrics(self) -> dict[str, float]:
        """By flat name. What is outstanding engine by engine, or, of more than `MOST_NAMED`, on the
        one that has the least and the one that has the most: a step's metrics do not grow with the
        cluster."""
        numbers = {
            "router/waiting": float(self.waiting),
            "router/wait_p50": self.wait_p50,
            "router/wait_max": self.wait_max,
            "router/retries": float(self.retries),
            "router/kept_tokens": float(self.kept_tokens),
            "router/rows": float(self.rows),
        }
        there = {name: each for name, each in self.engines.items() if each.state != "gone"}
        for what in ("rows", "tokens", "limit"):
            found = {name: float(getattr(each, what)) for name, each in there.items()}
            if len(found) > MOST_NAMED:
                found = {"least": min(found.values()), "most": max(found.values())}
            numbers |= {f"router/{what}/{name}": number for name, number in found.items()}
        return numbers


def wait_figures(granted: Iterable[float], waiting: Iterable[float]) -> tuple[float, float]:
    """Median and longest wait in seconds; 0 where nothing waited."""
    seconds = [*granted, *waiting]
    return (float(np.median(seconds)), max(seconds)) if seconds else (0.0, 0.0)
