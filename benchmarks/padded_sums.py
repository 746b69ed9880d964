"""Sums whose given answers have zeros in front, so that right answers are of several lengths."""

from __future__ import annotations

from zlib import crc32

from manta.envs.families.arithmetic import Arithmetic
from manta.envs.records import Task

MAX_ZEROS = 4


class PaddedSums(Arithmetic):
    """As `arithmetic`, answers compared by value; a gold one has 0 to `MAX_ZEROS` zeros in front,
    as many as its task's id decides."""

    def gold(self, task: Task) -> str:
        zeros = crc32(task.id.encode()) % (MAX_ZEROS + 1)
        return "0" * zeros + super().gold(task)
