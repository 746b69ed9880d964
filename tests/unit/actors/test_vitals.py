"""The pulse of an event loop, felt from another thread."""

from __future__ import annotations

import asyncio
import threading
import time

from manta.actors.vitals import LifeSign, Pulse


async def sleeps_in_the_loop(seconds: float) -> None:
    time.sleep(seconds)


async def beside(pulse: Pulse, waits: list[float]) -> list[LifeSign]:
    """Signs taken by another thread after these waits."""

    def feel() -> list[LifeSign]:
        signs = []
        for seconds in waits:
            time.sleep(seconds)
            signs.append(pulse.sign())
        return signs

    return await asyncio.to_thread(feel)


async def test_a_loop_that_turns_stands_for_no_time() -> None:
    pulse = Pulse(asyncio.get_running_loop(), threading.get_ident())
    signs = await beside(pulse, [0.05, 0.05, 0.05])
    assert all(sign.stands_seconds < 0.04 for sign in signs)
    assert signs[0].process.cpu_seconds > 0
    assert signs[0].process.peak_memory >= signs[0].process.memory > 0
    assert signs[0].host is None and pulse.sign(wants_host=True).host is not None


async def test_a_loop_that_stands_says_for_how_long_and_where() -> None:
    pulse = Pulse(asyncio.get_running_loop(), threading.get_ident())
    feeling = asyncio.create_task(beside(pulse, [0.1, 1.2]))
    await asyncio.sleep(0.05)
    await sleeps_in_the_loop(1.5)
    first, second = await feeling
    assert first.stands_seconds < 0.1
    assert second.stands_seconds > 1.1
    assert second.doing.startswith("sleeps_in_the_loop (test_vitals.py:")
    (after,) = await beside(pulse, [0.05])
    assert after.stands_seconds < 0.04
