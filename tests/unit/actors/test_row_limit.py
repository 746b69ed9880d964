from __future__ import annotations

import asyncio

import numpy as np
import pytest

from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.simulated import SimulatedEngine
from manta.actors.engines.token_clock import TokenClock
from manta.actors.leases import Ask, Leases, Ticket
from manta.actors.row_limit import AdaptiveLimit, FixedLimit
from manta.envs.records import GenerateRequest, Sampling, WeightVersion
from manta.orchestrator.simulation import virtual_clock


def rows_over_time(knee: int, most: int, start: int, noise: float, windows: int) -> list[int]:
    """An engine whose speed grows with its rows up to `knee` and not beyond."""
    generator = np.random.default_rng(0)
    limit = AdaptiveLimit(most, start, window_seconds=1.0)
    limit.note(0, True, 0.0)
    seen = []
    for second in range(1, windows + 1):
        speed = 100 * min(limit.rows, knee) * (1 + noise * generator.standard_normal())
        limit.note(round(speed), True, float(second))
        seen.append(limit.rows)
    return seen


@pytest.mark.parametrize(("knee", "start"), [(64, 8), (24, 128), (128, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_limit_stays_about_the_knee(knee: int, start: int, noise: float) -> None:
    settled = rows_over_time(knee, 256, start, noise, 400)[200:]
    assert 0.75 * knee <= np.mean(settled) <= 1.5 * knee
    assert max(settled) <= 256


def test_an_engine_without_a_knee_gets_all_its_rows() -> None:
    assert rows_over_time(10_000, 256, 16, 0.0, 60)[-1] == 256


def test_a_window_in_which_nothing_waited_changes_nothing() -> None:
    limit = AdaptiveLimit(256, 32, window_seconds=1.0)
    for second in range(50):
        limit.note(1000, second % 2 == 0, second / 2)
    assert limit.rows == 32


def test_a_fixed_limit_is_fixed() -> None:
    limit = FixedLimit(12)
    limit.note(1000, True, 5.0)
    assert limit.rows == 12


def test_a_simulated_engine_s_rows_are_found() -> None:
    """The router is not told that the engine decodes 16 rows side by side: with more, they wait."""
    limits = virtual_clock.run(limits_over_time())
    assert 11 <= np.mean(limits[40:]) <= 28, limits


async def limits_over_time() -> list[int]:
    now = asyncio.get_running_loop().time
    settings = SimulatedSettings(tokens_per_second=500.0, length_median=8.0, length_sigma=0.3)
    engine = SimulatedEngine(settings, 50, 512, 16, WeightVersion(0, 0), clock=TokenClock(now))
    leases = Leases(lambda: AdaptiveLimit(128, 32, window_seconds=0.15), now)
    for word in ("join", "serve"):
        leases.tell("a", word)  # type: ignore[arg-type]
    seeds = iter(range(1_000_000))
    running: set[asyncio.Task[None]] = set()
    limits = []

    async def call(ticket: Ticket) -> None:
        request = GenerateRequest(np.array([1], np.int32), (next(seeds),), (64,), Sampling())
        [[completion]] = await engine.generate([request])
        leases.release(ticket, len(completion.token_ids))
        give()

    def give() -> None:
        for lease in leases.grant():
            task = asyncio.ensure_future(call(lease.ticket))
            running.add(task)
            task.add_done_callback(running.discard)
            leases.ask(Ask(Ticket("w", next(seeds)), (0,), 1, 64))

    for _ in range(200):
        leases.ask(Ask(Ticket("w", next(seeds)), (0,), 1, 64))
    give()
    for _ in range(80):
        await asyncio.sleep(0.05)
        limits.append(leases.figures().engines["a"].limit)
    for task in list(running):
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return limits
