"""Processor time by part, in one thread: who is on top pays.

Owns the accounts. Parts may call each other; each is charged for itself alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Stopwatch:
    """`seconds` by part. What no part was charged with is the difference to the whole."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def timed(self, name: str, work: Coroutine[Any, Any, T]) -> TimedWork[T]:
        """`work`, which is charged to `name` whenever it runs."""
        return TimedWork(self, name, work)

    def _charge(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class TimedWork(Generic[T]):
    def __init__(self, watch: Stopwatch, name: str, work: Coroutine[Any, Any, T]) -> None:
        self._watch, self._name, self._work = watch, name, work

    def __await__(self) -> Generator[Any, Any, T]:
        value: Any = None
        error: BaseException | None = None
        while True:
            with self._watch.part(self._name):
                try:
                    waited = self._work.send(value) if error is None else self._work.throw(error)
                except StopIteration as end:
                    result: T = end.value
                    return result
            try:
                value, error = (yield waited), None
            # What comes in goes to the work, a cancellation too
            except BaseException as raised:  # noqa: BLE001
                value, error = None, raised
