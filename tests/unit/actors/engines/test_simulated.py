from __future__ import annotations

import asyncio
import math
import time

import numpy as np

from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.simulated import SimulatedEngine, sampled_length
from manta.actors.engines.token_clock import TokenClock
from manta.envs.records import GenerateRequest, Sampling, WeightVersion


def engine(speed: float, max_rows: int = 4096) -> SimulatedEngine:
    settings = SimulatedSettings(speed, length_median=64.0, length_sigma=1.0)
    return SimulatedEngine(settings, 50, 4096, max_rows, WeightVersion(0, 0))


def request(count: int, budget: int) -> GenerateRequest:
    return GenerateRequest(
        np.array([1], np.int32), tuple(range(count)), (budget,) * count, Sampling()
    )


async def test_lengths_are_lognormal_and_capped_by_the_budget() -> None:
    [out] = await engine(1e7).generate([request(1500, 2048)])
    lengths = np.array([len(c.token_ids) for c in out])
    logs = np.log(lengths)
    assert abs(logs.mean() - math.log(64.0)) < 0.1
    assert abs(logs.std() - 1.0) < 0.08
    [capped] = await engine(1e7).generate([request(1500, 64)])
    cut = [c.finish_reason == "length" for c in capped]
    assert 0.44 < np.mean(cut) < 0.56
    for own, whole in zip(capped, out, strict=True):
        assert len(own.token_ids) == min(64, len(whole.token_ids))
        assert np.array_equal(own.token_ids, whole.token_ids[: len(own.token_ids)])


async def test_rows_take_turns_and_tokens_take_time() -> None:
    simulated = engine(1000.0, max_rows=2)
    lengths = [len(c.token_ids) for c in (await engine(1e7).generate([request(6, 60)]))[0]]
    begin = time.monotonic()
    await simulated.generate([request(6, 60)])
    took = time.monotonic() - begin
    # Two rows share the work, the first free one takes the next sample.
    ends = [0.0, 0.0]
    for length in lengths:
        ends[ends.index(min(ends))] += length / 1000.0
    assert max(ends) <= took < max(ends) + 0.5


async def test_a_halted_clock_stands_still_and_its_sleepers_sleep_on() -> None:
    clock = TokenClock()
    sleeper = asyncio.ensure_future(clock.sleep_until(0.1))
    await asyncio.sleep(0.02)
    clock.halt()
    then = clock.now()
    await asyncio.sleep(0.2)
    assert clock.now() == then
    assert not sleeper.done()
    clock.go_on()
    await sleeper
    assert 0.1 <= clock.now() < 0.3


def test_prompts_may_share_in_the_length() -> None:
    for share in (0.0, 0.5, 1.0):
        settings = SimulatedSettings(1000.0, 64.0, 1.0, share)
        logs = np.log(
            [
                [sampled_length(settings, 40 * p + i, np.array([p], np.int32)) for i in range(40)]
                for p in range(120)
            ]
        )
        assert abs(logs.std() - 1.0) < 0.1
        assert abs(logs.mean(axis=1).var() / (share + (1 - share) / 40) - 1) < 0.25
    assert np.ptp(logs, axis=1).max() == 0.0


async def test_a_sample_that_goes_on_has_the_length_of_its_prompt() -> None:
    settings = SimulatedSettings(1e7, 64.0, 1.0, 0.5)
    whole = SimulatedEngine(settings, 50, 4096, 8, WeightVersion(0, 0))
    [samples] = await whole.generate([request(8, 2048)])
    for seed, sample in enumerate(samples):
        cut = len(sample.token_ids) // 2
        prefix = np.concatenate([[1], sample.token_ids[:cut]]).astype(np.int32)
        rest = GenerateRequest(prefix, (seed,), (2048 - cut,), Sampling(), drawn=cut)
        [[tail]] = await whole.generate([rest])
        assert np.array_equal(tail.token_ids, sample.token_ids[cut:])
