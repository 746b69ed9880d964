"""Ending vLLM's processes at once, with what they hold of shared memory.

Asked to end by themselves, each takes some five seconds. Killed, they leave the segments through
which they talk to each other; those are found among what they have mapped, and unlinked.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_SEGMENT = re.compile(r"/dev/shm/(?:psm_|vllm_dist_)\S+$", re.MULTILINE)
"""Those of Python's multiprocessing, and those of vLLM's tensor parallelism on a CPU."""


class Processes:
    """Processes `ids` and the shared memory that they have mapped now."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids = set(ids)
        self._segments = {name for each in self._ids for name in _segments(each)}

    def kill(self) -> None:
        """Ends those that are still there, and unlinks what all of them had mapped."""
        for each in self._ids:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        for name in self._segments:
            Path(name).unlink(missing_ok=True)


def _segments(process: int) -> list[str]:
    with suppress(OSError):
        return _SEGMENT.findall(Path(f"/proc/{process}/maps").read_text())
    return []
