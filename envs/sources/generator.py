"""Tasks made from their index: no storage, the same at every call."""

from __future__ import annotations

from collections.abc import Callable

from manta.envs.records import Task


class GeneratedSource:
    """`size` tasks; `make(index)` must depend on the index alone."""

    def __init__(self, size: int, make: Callable[[int], Task]) -> None:
        self._size = size
        self._make = make

    def __len__(self) -> int:
        return self._size

    def task(self, index: int) -> Task:
        """IndexError outside of 0..size-1."""
        return self._make(range(self._size)[index])
