from __future__ import annotations

import asyncio

import pytest

from manta.orchestrator.wait import DeadlineMissed, Waits, unless, unless_ended

LONG = 60.0


class Burst(RuntimeError):
    pass


async def never() -> None:
    await asyncio.Event().wait()


async def burst() -> None:
    raise Burst("first")


class Stubborn:
    """Work that answers a cancellation in its own way, after a few turns of the event loop."""

    def __init__(self, error: Exception | None = None, result: str | None = None) -> None:
        self.has_ended = False
        self._error, self._result = error, result

    async def work(self) -> str:
        try:
            await never()
        except asyncio.CancelledError:
            for _ in range(5):
                await asyncio.sleep(0)
            if self._error is not None:
                raise self._error from None
            if self._result is not None:
                return self._result
            raise
        finally:
            self.has_ended = True
        return "done"


async def test_a_missed_deadline_names_the_wait_and_cancels() -> None:
    waits, stubborn = Waits(), Stubborn()
    with pytest.raises(DeadlineMissed, match=r"waited 0\.01 s for the moon: no answer"):
        await waits.wait("the moon", stubborn.work(), 0.01)
    assert stubborn.has_ended
    assert waits.current() == []


async def test_waits_are_listed_oldest_first_while_they_last() -> None:
    waits, event = Waits(), asyncio.Event()
    tasks = [asyncio.create_task(waits.wait(n, event.wait(), LONG)) for n in ("one", "two")]
    await asyncio.sleep(0)
    assert [waiting.name for waiting in waits.current()] == ["one", "two"]
    assert waits.current()[0].deadline_seconds == LONG
    event.set()
    assert await asyncio.gather(*tasks) == [True, True]
    assert waits.current() == []


async def test_errors_come_out_as_they_are() -> None:
    waits = Waits()

    async def times_out() -> None:
        raise TimeoutError("a time-out of its own")

    with pytest.raises(Burst):
        await waits.wait("a burst", burst(), LONG)
    with pytest.raises(TimeoutError, match="of its own"):
        await waits.wait("another time-out", times_out(), LONG)
    assert waits.current() == []


async def test_a_cancellation_that_meets_the_result_is_not_lost() -> None:
    """Else a stop that comes as a group finishes would go on collecting in the background."""
    waits, future = Waits(), asyncio.get_running_loop().create_future()

    async def collect() -> None:
        await waits.wait("a group", future, LONG)
        await waits.wait("the next", never(), LONG)

    task = asyncio.create_task(collect())
    await asyncio.sleep(0)
    future.set_result(None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert waits.current() == []


async def test_unless_gives_the_result_or_none() -> None:
    event = asyncio.Event()

    async def work() -> str:
        return "result"

    assert await unless(event, work()) == "result"
    event.set()
    stubborn = Stubborn()
    assert await unless(event, stubborn.work()) is None
    assert stubborn.has_ended


async def test_unless_waits_for_the_loser_and_keeps_what_it_says() -> None:
    event = asyncio.Event()
    event.set()
    with pytest.raises(Burst, match="on the way out"):
        await unless(event, Stubborn(error=Burst("on the way out")).work())
    assert await unless(event, Stubborn(result="saved").work()) == "saved"
    with pytest.raises(Burst, match="first"):
        await unless(event, burst())


async def test_unless_passes_a_cancellation_on() -> None:
    stubborn = Stubborn()
    task = asyncio.create_task(unless(asyncio.Event(), stubborn.work()))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stubborn.has_ended


async def test_unless_ended_gives_the_result_and_leaves_no_one_behind() -> None:
    other = Stubborn()

    async def work() -> int:
        return 3

    assert await unless_ended(work(), other.work()) == 3
    assert other.has_ended


async def test_unless_ended_says_why_the_other_ended() -> None:
    async def leaves() -> None:
        return None

    work = Stubborn()
    with pytest.raises(Burst, match="first"):
        await unless_ended(work.work(), burst())
    assert work.has_ended
    with pytest.raises(RuntimeError, match="the learner group ended before it answered"):
        await unless_ended(Stubborn().work(), leaves())


async def test_unless_ended_loses_neither_error() -> None:
    async def fails() -> None:
        raise ValueError("second")

    with pytest.raises(Burst) as caught:
        await unless_ended(fails(), burst())
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="second"):
        await unless_ended(fails(), never())
    with pytest.raises(Burst) as caught:
        await unless_ended(Stubborn(error=ValueError("late")).work(), burst())
    assert isinstance(caught.value.__cause__, ValueError)
