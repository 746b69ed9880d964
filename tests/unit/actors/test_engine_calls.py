from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from manta.actors.engine_calls import CallAbandoned, EngineCalls
from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.simulated import SimulatedEngine
from manta.actors.leases import Ticket
from manta.envs.records import GenerateRequest, Sampling, WeightVersion

TICKET = Ticket("w", 1)


def engine(max_rows: int = 4, speed: float = 1000.0) -> SimulatedEngine:
    settings = SimulatedSettings(speed, length_median=1e9, length_sigma=0.0)
    return SimulatedEngine(settings, 50, 4096, max_rows, WeightVersion(0, 0))


def request(*budgets: int) -> GenerateRequest:
    return GenerateRequest(np.array([1], np.int32), tuple(range(len(budgets))), budgets, Sampling())


async def test_looks_bring_what_is_new_each_time() -> None:
    calls = EngineCalls(engine())
    assert await calls.progress(TICKET, [[0]]) is None
    call = asyncio.ensure_future(calls.generate(TICKET, [request(400), request(100)]))
    known = [[0], [0]]
    pieces: list[list[np.ndarray]] = [[], []]
    while True:
        await asyncio.sleep(0.05)
        found = await calls.progress(TICKET, known)
        if found is None:
            break
        for place, [completion] in enumerate(found.unpack()):
            known[place][0] += len(completion.token_ids)
            pieces[place].append(completion.token_ids)
    whole = (await call).unpack()
    assert sum(len(piece) > 0 for piece in pieces[0]) >= 3
    for place, [completion] in enumerate(whole):
        seen = np.concatenate(pieces[place])
        assert np.array_equal(seen, completion.token_ids[: len(seen)])
    assert len(calls) == 0


async def test_an_abandoned_call_frees_its_rows() -> None:
    calls = EngineCalls(engine(max_rows=2, speed=100.0))
    other = Ticket("w", 2)
    long = asyncio.ensure_future(calls.generate(TICKET, [request(1000, 1000)]))
    waits = asyncio.ensure_future(calls.generate(other, [request(1)]))
    await asyncio.sleep(0.05)
    assert not waits.done()
    calls.abandon([TICKET, Ticket("never", 0)])
    with pytest.raises(CallAbandoned):
        await asyncio.wait_for(long, 5)
    assert len((await asyncio.wait_for(waits, 5)).token_ids) == 1
    assert len(calls) == 0


async def test_a_call_may_be_abandoned_before_it_comes() -> None:
    calls = EngineCalls(engine())
    calls.abandon([TICKET])
    with pytest.raises(CallAbandoned):
        await calls.generate(TICKET, [request(1000)])
    assert len(calls) == 0


async def test_a_cancelled_call_frees_its_rows() -> None:
    calls = EngineCalls(engine(max_rows=1, speed=100.0))
    long = asyncio.ensure_future(calls.generate(TICKET, [request(1000)]))
    await asyncio.sleep(0.05)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    done = await asyncio.wait_for(calls.generate(TICKET, [request(1)]), 5)
    assert len(done.token_ids) == 1


async def test_an_engine_s_error_is_the_call_s() -> None:
    calls = EngineCalls(engine())
    with pytest.raises(ValueError, match="budget of 0"):
        await calls.generate(TICKET, [request(0)])
    assert len(calls) == 0


async def test_rows_of_redundant_samples_are_told_to_be_free() -> None:
    calls = EngineCalls(engine(speed=200.0))
    wanted = replace(request(1000, 4, 1000), enough=1)
    call = asyncio.ensure_future(calls.generate(TICKET, [wanted, request(200)]))
    await asyncio.sleep(0)
    assert calls.unfinished() == {TICKET: 4}
    while calls.unfinished()[TICKET] > 1:
        await asyncio.sleep(0.01)
    assert not call.done()
    assert (await call).lengths.tolist()[1::2] == [4, 200]
