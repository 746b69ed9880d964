"""Every process that was seen below others: who of them lives on, wherever it belongs by now.

A process whose parent is gone is below nobody any more, so that who comes late does not find it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil


class Census:
    def __init__(self) -> None:
        self._seen: dict[psutil.Process, str] = {}
        """By pid and time of creation: what the process is called."""

    def look(self, roots: Iterable[psutil.Process]) -> None:
        """Notes all processes below `roots`, however deep."""
        for root in roots:
            for each in descendants(root):
                if called := title(each):
                    self._seen[each] = called

    def living(self) -> dict[psutil.Process, str]:
        """Those seen that have not ended, and what they were called last."""
        return {each: called for each, called in self._seen.items() if is_alive(each)}


def descendants(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return list(process.children(recursive=True))
    return []


def is_alive(process: psutil.Process) -> bool:
    """One that has ended and that nobody asked about is not; one that is stopped is."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def title(process: psutil.Process) -> str:
    """What the process calls itself; empty where it has gone."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline()).strip()
    return ""
