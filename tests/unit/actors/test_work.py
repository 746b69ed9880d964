"""What a worker has to do, by clocks that a test moves."""

from __future__ import annotations

import asyncio

import pytest

from manta.actors.work import Work


def test_busy_is_the_share_of_a_core_since_it_was_asked_last() -> None:
    wall, processor = iter([0.0, 10.0, 12.0, 12.0]), iter([5.0, 9.0, 9.5, 9.5])
    work = Work(lambda: next(wall), lambda: next(processor))
    assert work.busy() == pytest.approx(0.4)
    assert work.busy() == pytest.approx(0.25)
    assert work.busy() == 0.0, "no time has passed"


async def test_it_is_quiet_once_no_call_is_under_way() -> None:
    work = Work()
    await work.quiet()
    with work.under_way():
        quiet = asyncio.create_task(work.quiet())
        with work.under_way():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not quiet.done()
    await asyncio.wait_for(quiet, 1)
