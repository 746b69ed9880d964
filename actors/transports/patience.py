"""How long a direct transfer may take, and what ends one that takes longer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STARTS_WITHIN = 60.0
_SLOWEST = 100e6
"""Seconds, and bytes a second: a transfer that is slower has met a process that died."""


def patience(num_bytes: int) -> float:
    """Seconds after which a direct transfer of so many bytes has failed."""
    return _STARTS_WITHIN + num_bytes / _SLOWEST


@contextmanager
def giving_up(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Calls `give_up` from another thread if the block takes longer. A collective that waits for a
    dead process returns when its communicator is ended, and not before."""
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
