"""What the router tells of itself: numbers only, the same for metrics, display and events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from manta.actors.engine_state import EngineState


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
        """By flat name, engine by engine what is outstanding."""
        numbers = {
            "router/waiting": float(self.waiting),
            "router/wait_p50": self.wait_p50,
            "router/wait_max": self.wait_max,
            "router/retries": float(self.retries),
            "router/kept_tokens": float(self.kept_tokens),
            "router/rows": float(self.rows),
        }
        for name, engine in self.engines.items():
            if engine.state != "gone":
                numbers[f"router/rows/{name}"] = float(engine.rows)
                numbers[f"router/tokens/{name}"] = float(engine.tokens)
                numbers[f"router/limit/{name}"] = float(engine.limit)
        return numbers


def wait_figures(granted: Iterable[float], waiting: Iterable[float]) -> tuple[float, float]:
    """Median and longest wait in seconds; 0 where nothing waited."""
    seconds = [*granted, *waiting]
    return (float(np.median(seconds)), max(seconds)) if seconds else (0.0, 0.0)
