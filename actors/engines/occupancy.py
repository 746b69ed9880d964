"""How busy an engine's rows are, and what it does: row-seconds in use out of all there were, decode
steps and prefills.

The engine says how many rows it holds whenever that changes, and what a step took, if it can tell;
who owns the engine reads. May be used from two threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineWork:
    """What an engine has done, in sums that add up over engines and time: enough to fit the seconds
    of a decode step as a + b * rows. Over decode `steps` of r rows and s seconds: `rows` is the sum
    of r (the tokens made), `rows_squared` of r * r, `seconds` of s, `row_seconds` of r * s. All 0
    for an engine that cannot tell its steps."""

    steps: int = 0
    rows: int = 0
    rows_squared: int = 0
    seconds: float = 0.0
    row_seconds: float = 0.0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0

    def __add__(self, other: EngineWork) -> EngineWork:
        return EngineWork(
            self.steps + other.steps,
            self.rows + other.rows,
            self.rows_squared + other.rows_squared,
            self.seconds + other.seconds,
            self.row_seconds + other.row_seconds,
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_seconds + other.prefill_seconds,
        )


NO_WORK = EngineWork()


@dataclass(frozen=True, slots=True)
class RowSeconds:
    """`busy` of `total` row-seconds, both 0 for an engine that does not count; and the `work` of
    that time."""

    busy: float = 0.0
    total: float = 0.0
    work: EngineWork = NO_WORK

    def __add__(self, other: RowSeconds) -> RowSeconds:
        return RowSeconds(self.busy + other.busy, self.total + other.total, self.work + other.work)


NOT_COUNTED = RowSeconds()


class Occupancy:
    """Of an engine with `capacity` rows, none of them in use."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self._lock = threading.Lock()
        self._rows = 0
        self._is_told = False
        self._busy = 0.0
        self._work = NO_WORK
        self._since = self._start = clock()

    def add(self, rows: int) -> None:
        """`rows` more are in use from now on; fewer where it is negative."""
        with self._lock:
            self._is_told = True
            self._count()
            self._rows += rows

    def set(self, rows: int) -> None:
        """`rows` are in use from now on."""
        with self._lock:
            self._is_told = True
            self._count()
            self._rows = rows

    def decoded(self, rows: int, seconds: float, steps: int = 1) -> None:
        """Each of `steps` decode steps has given `rows` rows a token and taken `seconds`."""
        done = EngineWork(
            steps, steps * rows, steps * rows * rows, steps * seconds, steps * rows * seconds
        )
        with self._lock:
            self._work += done

    def prefilled(self, tokens: int, seconds: float) -> None:
        """The model went over `tokens` of prompts, in `seconds`."""
        with self._lock:
            self._work += EngineWork(prefill_tokens=tokens, prefill_seconds=seconds)

    def take(self) -> RowSeconds:
        """Those since the last call; none from an engine that never told anything."""
        with self._lock:
            self._count()
            total = self._capacity * (self._since - self._start)
            taken = RowSeconds(self._busy, total, self._work)
            self._busy, self._start, self._work = 0.0, self._since, NO_WORK
            return taken if self._is_told else NOT_COUNTED

    def _count(self) -> None:
        now = self._clock()
        self._busy += self._rows * (now - self._since)
        self._since = now
