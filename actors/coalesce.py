"""Requests made in one turn of the event loop travel in one call.

A block's groups ask for the same thing at the same moment; one remote call for all of them costs
what one of them would. Owns the gathering, not what is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Batch(Generic[Item, Result]):
    items: list[Item] = field(default_factory=list)
    waiting: int = 0
    sending: asyncio.Task[Sequence[Result]] | None = None


class Coalescer(Generic[Item, Result]):
    """`call` takes the items of a turn and returns one result each, in order. Its error reaches
    everyone whose item it carried; it is cancelled once all of them have given up."""

    def __init__(self, call: Callable[[list[Item]], Awaitable[Sequence[Result]]]) -> None:
        self._call = call
        self._open: _Batch[Item, Result] = _Batch()

    async def __call__(self, item: Item) -> Result:
        batch = self._open
        place = len(batch.items)
        batch.items.append(item)
        if batch.sending is None:
            batch.sending = asyncio.create_task(self._send(batch))
        batch.waiting += 1
        try:
            results = await asyncio.shield(batch.sending)
        finally:
            batch.waiting -= 1
            if batch.waiting == 0:
                self._close(batch)
                batch.sending.cancel()
        return results[place]

    async def _send(self, batch: _Batch[Item, Result]) -> Sequence[Result]:
        await asyncio.sleep(0)
        self._close(batch)
        return await self._call(batch.items)

    def _close(self, batch: _Batch[Item, Result]) -> None:
        if self._open is batch:
            self._open = _Batch()
