from __future__ import annotations

import asyncio

import numpy as np
import pytest

from manta.actors.engines.occupancy import NOT_COUNTED, EngineWork, Occupancy, RowSeconds
from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.simulated import SimulatedEngine
from manta.envs.records import GenerateRequest, Sampling, WeightVersion


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_row_seconds_by_hand() -> None:
    clock = Clock()
    occupancy = Occupancy(4, clock)
    occupancy.set(0)
    clock.now = 1.0
    occupancy.add(3)
    clock.now = 3.0
    occupancy.add(-1)
    clock.now = 5.0
    assert occupancy.take() == RowSeconds(busy=3 * 2 + 2 * 2, total=4 * 5)
    clock.now = 6.0
    assert occupancy.take() == RowSeconds(busy=2, total=4), "rows stay in use"


def test_decode_steps_and_prefills_add_up_until_they_are_taken() -> None:
    occupancy = Occupancy(4, Clock())
    occupancy.set(2)
    occupancy.decoded(2, 0.5)
    occupancy.decoded(3, 0.25, steps=2)
    occupancy.prefilled(40, 0.125)
    taken = occupancy.take().work
    assert taken == EngineWork(3, 8, 4 + 2 * 9, 1.0, 1.0 + 1.5, 40, 0.125)
    assert occupancy.take().work == EngineWork()
    assert (taken + taken).row_seconds == 5.0


def test_an_engine_that_does_not_count_has_no_share() -> None:
    clock = Clock()
    occupancy = Occupancy(4, clock)
    clock.now = 9.0
    assert occupancy.take() == NOT_COUNTED
    occupancy.add(1)
    clock.now = 10.0
    assert occupancy.take() == RowSeconds(1, 4), "since the call before, told or not"


async def test_a_simulated_engine_tells_its_rows() -> None:
    """Two rows of 30 tokens at 1,000 tokens a second in an engine of four."""
    occupancy = Occupancy(4)
    settings = SimulatedSettings(1000.0, 1000.0, 0.0)
    engine = SimulatedEngine(settings, 10, 64, 4, WeightVersion(0, 0), occupancy)
    request = GenerateRequest(np.array([1], np.int32), (1, 2), (30, 30), Sampling())
    await engine.generate([request])
    taken = occupancy.take()
    assert taken.busy == pytest.approx(0.06, abs=0.03)
    assert (taken.work.steps, taken.work.rows) == (60, 60), "every row at its own pace"
    assert taken.work.seconds == pytest.approx(0.06)
    cancelled = asyncio.create_task(engine.generate([request]))
    await asyncio.sleep(0.005)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    occupancy.take()
    await asyncio.sleep(0.005)
    assert occupancy.take().busy == 0.0, "what was cancelled holds no row"
