"""Staleness holds, nothing is lost and nothing locks up, whatever the world does and when."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.expected_lengths import ExpectedLengths
from manta.orchestrator.feed import Feed
from manta.orchestrator.racing_feed import RacingFeed
from manta.orchestrator.simulation import virtual_clock
from manta.orchestrator.supply import OVERTAKEN, Finished
from tests.unit.orchestrator.simulated_stage import SimulatedStage, order

SEEDS = range(6)


def ages(stage: SimulatedStage) -> list[int]:
    return [
        step - 1 - each.oldest.step
        for step, summaries in stage.recorder.steps
        for each in summaries
        if each.oldest is not None
    ]


def places_with(stage: SimulatedStage, outcome: str) -> list[tuple[int, int]]:
    return [entry.group[:2] for entry in stage.entries if entry.outcome == outcome]


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("keeps_place", [False, True])
def test_the_slots_alone_bound_staleness(tmp_path: Path, staleness: int, keeps_place: bool) -> None:
    seen = Counter[int]()
    for seed in SEEDS:
        draw = random.Random(seed)
        prompts = draw.randint(1, 6)
        feed: Feed[Finished] = Feed(order(), (staleness + 1) * prompts, keeps_place)
        stage = SimulatedStage(
            tmp_path,
            seed,
            feed,
            prompts,
            AgePolicy(staleness),
            groups_per_call=draw.randint(1, 3),
            breaking=draw.choice([0.0, 0.1, 0.4]),
            flat=draw.choice([0.0, 0.2, 0.6]),
            sigma=draw.choice([0.2, 1.0, 2.0]),
            lengths=draw.choice([None, ExpectedLengths()]),
        )
        virtual_clock.run(stage.run())
        seen.update(ages(stage))
        assert [step for step, _ in stage.recorder.steps] == list(range(1, 26))
        assert all(len(summaries) == prompts for _, summaries in stage.recorder.steps)
    assert min(seen) >= 0 and max(seen) <= staleness
    assert seen[staleness], "the bound is reached, or this proves nothing"


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_what_is_too_old_is_made_anew_and_trains_in_the_end(tmp_path: Path, limit: int) -> None:
    staleness, dropped = 4, 0
    for seed in SEEDS:
        feed: Feed[Finished] = Feed(order(), (staleness + 1) * 3, keeps_place=False)
        rule = AgePolicy(limit, "drop_and_replace")
        stage = SimulatedStage(tmp_path, seed, feed, 3, rule, breaking=0.0)
        virtual_clock.run(stage.run())
        assert max(ages(stage)) <= limit
        too_old = Counter(e.group[:2] for e in stage.entries if e.reason.startswith("too old: "))
        dropped += too_old.total()
        assert max(too_old.values(), default=0) <= staleness, "a group is put off again and again"
    assert dropped, "nothing was too old, so this proves nothing"


def test_groups_that_break_too_are_not_put_off_for_ever(tmp_path: Path) -> None:
    for seed in SEEDS:
        feed: Feed[Finished] = Feed(order(), 5 * 3, keeps_place=False)
        rule = AgePolicy(1, "drop_and_replace")
        stage = SimulatedStage(tmp_path, seed, feed, 3, rule, steps=40, breaking=0.2)
        virtual_clock.run(stage.run())
        assert max(ages(stage)) <= 1
        outstanding = {group[:2] for group in feed.state(40).outstanding}
        assert min(outstanding) > (0, 50)


def test_tokens_that_are_too_old_leave_the_loss(tmp_path: Path) -> None:
    masked = 0
    for seed in SEEDS:
        feed: Feed[Finished] = Feed(order(), 4 * 3, keeps_place=False)
        stage = SimulatedStage(tmp_path, seed, feed, 3, AgePolicy(1, "mask_tokens"))
        virtual_clock.run(stage.run())
        assert not any(e.reason.startswith("too old") for e in stage.entries)
        for (step, summaries), work in zip(stage.recorder.steps, stage.learner.works, strict=True):
            assert work.plan.oldest_version == step - 2
            for each in summaries:
                assert all(step - 1 - v.step <= 1 for v in each.tokens_by_version)
                assert each.num_tokens.sum() + each.num_too_old == 4
            counts = np.concatenate([each.num_tokens for each in summaries])
            np.testing.assert_array_equal(work.plan.num_tokens_N, counts)
            masked += sum(each.num_too_old for each in summaries)
        assert len(places_with(stage, "trained")) == 25 * 3
    assert masked, "nothing was too old, so this proves nothing"


@pytest.mark.parametrize("groups_per_call", [1, 2])
def test_over_sampled_steps_are_on_policy_and_put_no_group_off_twice(
    tmp_path: Path, groups_per_call: int
) -> None:
    for seed in SEEDS:
        draw = random.Random(seed)
        prompts = draw.randint(2, 6)
        slots = prompts + draw.randint(1, 4)
        feed: RacingFeed[Finished] = RacingFeed(order(), prompts, slots)
        stage = SimulatedStage(
            tmp_path,
            seed,
            feed,
            prompts,
            AgePolicy(0, "drop_and_replace"),
            groups_per_call=groups_per_call,
            breaking=draw.choice([0.0, 0.2]),
            flat=draw.choice([0.0, 0.4]),
        )
        virtual_clock.run(stage.run())
        assert set(ages(stage)) == {0}
        assert all(len(summaries) == prompts for _, summaries in stage.recorder.steps)
        overtaken = Counter(e.group[:2] for e in stage.entries if e.reason == OVERTAKEN)
        assert overtaken and max(overtaken.values()) == 1
        settled = {e.group[:2] for e in stage.entries if e.outcome != "dropped"}
        given_up = {e.group[:2] for e in stage.entries if e.reason == "the world broke"}
        owed = set(overtaken) - settled - given_up
        outstanding = {group[:2] for group in feed.state(25).outstanding}
        assert owed <= outstanding, "an overtaken group is lost"


def test_overtaken_groups_are_no_longer_made(tmp_path: Path) -> None:
    feed: RacingFeed[Finished] = RacingFeed(order(), 4, 6)
    stage = SimulatedStage(
        tmp_path, 1, feed, 4, AgePolicy(0, "drop_and_replace"), breaking=0.0, flat=0.0
    )
    virtual_clock.run(stage.run())
    overtaken = {e.group for e in stage.entries if e.reason == OVERTAKEN}
    at_the_end = set(stage.pool.cancelled) - overtaken
    assert overtaken <= set(stage.pool.cancelled)
    assert at_the_end <= set(feed.state(25).outstanding)


def test_racing_makes_synchronous_steps_faster(tmp_path: Path) -> None:
    """Not a timing: the seconds are virtual."""
    seconds = []
    for number, feed in enumerate([Feed(order(), 8, False), RacingFeed(order(), 8, 12)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        stage = SimulatedStage(
            folder, 5, feed, 8, AgePolicy(0, "drop_and_replace"), steps=60, breaking=0.0, flat=0.0
        )
        seconds.append(virtual_clock.run(_timed(stage)))
    assert seconds[1] < 0.85 * seconds[0]


async def _timed(stage: SimulatedStage) -> float:
    await stage.run()
    return asyncio.get_running_loop().time()
