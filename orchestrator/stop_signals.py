"""Ctrl-C and SIGTERM: the first asks for a stop, a second one ends the driver."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def stop_on_signals(should_stop: asyncio.Event, tell: Callable[[], None]) -> None:
    """From now on the first signal asks for a stop at the next step border, and says so; a second
    ends the driver at once, like kill: what was not saved is made again on resume."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None

    def on_signal() -> None:
        if should_stop.is_set():
            main.cancel()
            return
        should_stop.set()
        tell()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
