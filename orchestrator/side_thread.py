"""A thread beside the event loop for which neither the loop nor the process waits at its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Like `asyncio.to_thread`, whose threads the event loop and the process would wait for at
    their ends, for as long as they hang."""
    answer: Future[T] = Future()
    # Whoever gives up waiting for it cannot cancel it: the thread goes on
    answer.set_running_or_notify_cancel()

    def run() -> None:
        try:
            answer.set_result(work(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whoever awaits the answer has it
            answer.set_exception(error)

    threading.Thread(target=run, name="side", daemon=True).start()
    return asyncio.wrap_future(answer)
