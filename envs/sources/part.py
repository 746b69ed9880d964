"""A run of consecutive tasks of another source, such as the rows that are held out."""

from __future__ import annotations

from manta.envs.protocols import TaskSource
from manta.envs.records import Task


class Part:
    """Tasks `start` to `stop` (exclusive) of `source`."""

    def __init__(self, source: TaskSource, start: int, stop: int) -> None:
        self._source = source
        self._indices = range(len(source))[start:stop]

    def __len__(self) -> int:
        return len(self._indices)

    def task(self, index: int) -> Task:
        """IndexError outside of the part."""
        return self._source.task(self._indices[index])
