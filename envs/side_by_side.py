"""Coroutines side by side, none of which outlives the others' failure.

Owns cancellation only. Deadlines belong to whoever waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def ending(*tasks: asyncio.Future[Any]) -> AsyncIterator[None]:
    """All `tasks` have ended on the way out; those still running are cancelled."""
    try:
        yield
    finally:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.gather(*left, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # has been looked at


async def until_enough(
    coroutines: Sequence[Coroutine[object, object, object]], enough: int
) -> None:
    """Returns once `enough` have; the others are cancelled, and have ended then too. The first
    exception is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    async with ending(*tasks):
        left = set(tasks)
        while len(tasks) - len(left) < enough:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()


async def side_by_side(coroutines: Sequence[Coroutine[object, object, T]]) -> list[T]:
    """The results in order; the first exception is raised once the others have ended."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    async with ending(*tasks):
        return await asyncio.gather(*tasks)
