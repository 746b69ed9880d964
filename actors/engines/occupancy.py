"""How busy an engine's rows are: row-seconds in use, out of all there were.

The engine says how many rows it holds whenever that changes; who owns the engine reads. May be used
from two threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowSeconds:
    """`busy` of `total` row-seconds; both 0 for an engine that does not count."""

    busy: float = 0.0
    total: float = 0.0

    def __add__(self, other: RowSeconds) -> RowSeconds:
        return RowSeconds(self.busy + other.busy, self.total + other.total)


NOT_COUNTED = RowSeconds()


class Occupancy:
    """Of an engine with `capacity` rows, none of them in use."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self._lock = threading.Lock()
        self._rows = 0
        self._is_told = False
        self._busy = 0.0
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

    def take(self) -> RowSeconds:
        """Those since the last call; none from an engine that never told anything."""
        with self._lock:
            self._count()
            taken = RowSeconds(self._busy, self._capacity * (self._since - self._start))
            self._busy, self._start = 0.0, self._since
            return taken if self._is_told else NOT_COUNTED

    def _count(self) -> None:
        now = self._clock()
        self._busy += self._rows * (now - self._since)
        self._since = now
