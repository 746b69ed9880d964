from __future__ import annotations

import asyncio

import pytest

from manta.actors.coalesce import Coalescer


async def test_requests_of_one_turn_travel_together_and_keep_their_order() -> None:
    calls: list[list[int]] = []

    async def double(items: list[int]) -> list[int]:
        calls.append(items)
        await asyncio.sleep(0)
        return [2 * item for item in items]

    coalescer = Coalescer(double)
    assert await asyncio.gather(*(coalescer(i) for i in range(5))) == [0, 2, 4, 6, 8]
    assert await coalescer(9) == 18
    assert calls == [[0, 1, 2, 3, 4], [9]]


async def test_an_error_reaches_everyone_and_later_calls_go_on() -> None:
    async def fail_on_negative(items: list[int]) -> list[int]:
        if min(items) < 0:
            raise ValueError("negative")
        return items

    coalescer = Coalescer(fail_on_negative)
    results = await asyncio.gather(coalescer(1), coalescer(-1), return_exceptions=True)
    assert all(isinstance(result, ValueError) for result in results)
    assert await coalescer(3) == 3


async def test_a_caller_that_gives_up_does_not_take_the_others_along() -> None:
    started = asyncio.Event()
    release = asyncio.Event()

    async def slow(items: list[int]) -> list[int]:
        started.set()
        await release.wait()
        return items

    coalescer = Coalescer(slow)
    first, second = (asyncio.create_task(coalescer(i)) for i in (1, 2))
    await started.wait()
    first.cancel()
    release.set()
    assert await second == 2
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_call_that_everyone_gave_up_is_cancelled() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def slow(items: list[int]) -> list[int]:
        if items == [3]:
            return items
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return items

    coalescer = Coalescer(slow)
    callers = [asyncio.create_task(coalescer(i)) for i in (1, 2)]
    await started.wait()
    callers[0].cancel()
    await asyncio.sleep(0)
    assert not ended.is_set()
    callers[1].cancel()
    await asyncio.wait_for(ended.wait(), 5)
    assert await coalescer(3) == 3


async def test_a_call_given_up_before_it_was_made_is_not_made() -> None:
    calls: list[list[int]] = []

    async def note(items: list[int]) -> list[int]:
        calls.append(items)
        return items

    coalescer = Coalescer(note)
    early = asyncio.create_task(coalescer(1))
    await asyncio.sleep(0)
    early.cancel()
    await asyncio.gather(early, return_exceptions=True)
    assert await coalescer(2) == 2
    assert calls == [[2]]
