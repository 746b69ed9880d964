"""What each way of dealing with the longest samples gains and costs, in virtual time.

Seconds and shares follow from the seeds: they are figures, not timings. Steps take turns with
updates of 1.3 s; no way of making 256 such samples on 64 rows takes less than 1.3 s.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from benchmarks import simulated_cluster as cluster
from manta.actors.engines.settings import CapSettings
from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.carrying_feed import CarryingFeed
from manta.orchestrator.feed import Feed
from manta.orchestrator.length_cap import LengthCap
from manta.orchestrator.metrics import step_metrics
from manta.orchestrator.racing_feed import RacingFeed
from manta.orchestrator.simulation import virtual_clock
from manta.orchestrator.supply import Finished
from tests.unit.orchestrator.engine_stage import Measured, measure, order
from tests.unit.orchestrator.simulated_stage import SimulatedStage
from tests.unit.orchestrator.simulated_stage import order as short_order

PROMPTS = cluster.PROMPTS


def on_policy() -> Feed[Finished]:
    return Feed(order(), PROMPTS, keeps_place=False)


def measured(feed: Feed[Finished], staleness: int = 0, **settings: object) -> Measured:
    with TemporaryDirectory() as folder:
        found = measure(Path(folder), feed, AgePolicy(staleness), **settings)  # type: ignore[arg-type]
        return virtual_clock.run(found)


@cache
def plain() -> Measured:
    return measured(on_policy())


def ages(found: Measured) -> Counter[int]:
    return Counter(
        step - 1 - each.oldest.step
        for step, summaries in found.steps
        for each in summaries
        if each.oldest is not None
    )


def lengths(found: Measured) -> np.ndarray:
    return np.concatenate([each.num_tokens for _, groups in found.steps for each in groups])


def test_a_plain_step_waits_for_its_longest_sample() -> None:
    assert plain().step_seconds == pytest.approx(4.16, abs=0.01)
    assert plain().idle_share == pytest.approx(0.685, abs=0.001)
    assert lengths(plain()).max() == cluster.CAP


def test_longest_first_gains_what_lengths_tell_of_tasks() -> None:
    found = measured(on_policy(), longest_first=True)
    assert found.step_seconds == pytest.approx(3.93, abs=0.01)
    assert found.idle_share == pytest.approx(0.666, abs=0.001)
    assert sorted(found.trained) == sorted(plain().trained)


def test_redundant_samples_end_steps_earlier_and_show_their_bias() -> None:
    found = measured(on_policy(), redundant=2)
    assert found.step_seconds == pytest.approx(3.32, abs=0.01)
    assert found.idle_share == pytest.approx(0.588, abs=0.001)
    assert set(ages(found)) == {0}
    assert sorted(found.trained) == sorted(plain().trained), "every task trains all the same"
    groups = [each for _, summaries in found.steps for each in summaries]
    assert {(len(g.rewards), len(g.cut_off)) for g in groups} == {(cluster.SAMPLES, 2)}
    metrics = step_metrics(0, groups, {}, {}, 1.0)
    truth = lengths(plain()).mean()
    assert truth == pytest.approx(26.23, abs=0.01)
    assert metrics["length/mean"] == pytest.approx(18.95, abs=0.01)
    assert metrics["length/cut_off_mean"] == pytest.approx(33.56, abs=0.01)
    assert metrics["length/mean"] < metrics["length/begun_mean"] < truth
    assert metrics["length/cut_off_share"] == pytest.approx(0.2)
    assert metrics["tokens/cut_off_share"] == pytest.approx(0.307, abs=0.001)


def test_a_cap_of_medians_ends_the_longest_samples_and_does_not_fall() -> None:
    cap = LengthCap(CapSettings(medians=4), cluster.CAP)
    found = measured(on_policy(), cap=cap)
    assert found.step_seconds == pytest.approx(2.99, abs=0.01)
    assert found.idle_share == pytest.approx(0.615, abs=0.001)
    truncated = np.concatenate([g.is_truncated for _, groups in found.steps for g in groups])
    assert truncated.mean() == pytest.approx(0.074, abs=0.001)
    caps = found.stage.engines.caps
    assert caps[:PROMPTS] == [cluster.CAP] * PROMPTS, "nothing was seen yet"
    assert min(caps) > 60 and max(caps[PROMPTS:]) < 85
    per_step = [caps[i : i + PROMPTS] for i in range(0, 12 * PROMPTS, PROMPTS)]
    assert all(len(set(of_step)) == 1 for of_step in per_step), "it moves between steps only"
    assert sorted(found.trained) == sorted(plain().trained)


def test_carrying_over_keeps_what_was_made_and_nothing_is_late() -> None:
    found = measured(CarryingFeed(order(), PROMPTS, PROMPTS * 5 // 4, 1), staleness=1)
    assert found.step_seconds == pytest.approx(2.72, abs=0.01)
    assert found.idle_share == pytest.approx(0.518, abs=0.001)
    assert set(ages(found)) == {0, 1}
    assert not [e for e in found.stage.entries if e.outcome == "dropped"]
    spans = [
        each for _, groups in found.steps for each in groups if len(each.tokens_by_version) > 1
    ]
    assert spans, "no group met two versions, so nothing was carried over"
    assert lengths(found).max() == cluster.CAP


def test_a_step_ahead_carries_samples_over_too_with_more_groups_in_flight() -> None:
    ahead = measured(Feed(order(), 2 * PROMPTS, keeps_place=False), staleness=1)
    carried = measured(CarryingFeed(order(), PROMPTS, 2 * PROMPTS, 1), staleness=1)
    assert ahead.step_seconds == pytest.approx(2.22, abs=0.01)
    assert ahead.idle_share == pytest.approx(0.414, abs=0.001)
    assert carried.step_seconds == pytest.approx(ahead.step_seconds, rel=0.01)
    few = measured(CarryingFeed(order(), PROMPTS, PROMPTS * 5 // 4, 1), staleness=1)
    assert ages(few)[1] < 0.35 * ages(few).total() < 0.5 * ages(ahead)[1]


def test_races_drop_what_they_overtake() -> None:
    with TemporaryDirectory() as folder:
        feed: RacingFeed[Finished] = RacingFeed(order(), PROMPTS, PROMPTS * 5 // 4)
        rule = AgePolicy(0, "drop_and_replace")
        found = virtual_clock.run(measure(Path(folder), feed, rule))
        assert found.step_seconds == pytest.approx(3.73, abs=0.01)
        assert set(ages(found)) == {0}
        assert [e for e in found.stage.entries if e.outcome == "dropped"]


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_no_group_is_carried_over_too_often(tmp_path: Path, limit: int) -> None:
    """Groups break, cannot teach, and take lognormal times."""
    seen = Counter[int]()
    for seed in range(8):
        draw = random.Random(seed)
        prompts = draw.randint(2, 6)
        feed: CarryingFeed[Finished] = CarryingFeed(
            short_order(), prompts, prompts + draw.randint(1, prompts), limit
        )
        stage = SimulatedStage(
            tmp_path,
            seed,
            feed,
            prompts,
            AgePolicy(limit),
            groups_per_call=draw.randint(1, 2),
            breaking=draw.choice([0.0, 0.2, 0.4]),
            flat=draw.choice([0.0, 0.4]),
            sigma=draw.choice([1.0, 2.0]),
        )
        virtual_clock.run(stage.run())
        assert all(len(summaries) == prompts for _, summaries in stage.recorder.steps)
        assert not stage.pool.cancelled or set(stage.pool.cancelled) <= set(
            feed.state(25).outstanding
        )
        seen.update(
            step - 1 - each.oldest.step
            for step, summaries in stage.recorder.steps
            for each in summaries
            if each.oldest is not None
        )
    assert min(seen) == 0 and max(seen) == limit, "the bound is reached, and holds"


def test_masked_tokens_and_carried_groups_go_together(tmp_path: Path) -> None:
    feed: CarryingFeed[Finished] = CarryingFeed(short_order(), 4, 6, 1)
    stage = SimulatedStage(tmp_path, 2, feed, 4, AgePolicy(0, "mask_tokens"), breaking=0.0)
    virtual_clock.run(stage.run())
    masked = sum(each.num_too_old for _, groups in stage.recorder.steps for each in groups)
    assert masked, "nothing was carried over, so this proves nothing"
    for step, groups in stage.recorder.steps:
        assert {v.step for each in groups for v in each.tokens_by_version} == {step - 1}


def test_a_resumed_feed_begins_anew_what_it_carried(tmp_path: Path) -> None:
    feed: CarryingFeed[str] = CarryingFeed(short_order(), 2, 4, 1)
    first = [admission.id for admission in feed.admit()]
    feed.finish(first[3], "done")
    feed.finish(first[1], "done")
    assert [feed.take(1), feed.take(1)] == [(first[1], "done"), (first[3], "done")]
    assert feed.close() == [] and feed.admit() == []
    state = feed.state(1)
    assert state.outstanding == (first[0], first[2])
    feed.settle(1)
    feed.free([first[1], first[3]])
    new = [admission.id for admission in feed.admit()]
    feed.finish(new[0], "done")
    assert feed.take(2) is None, "both that were overtaken are due, and fill the step"
    resumed: CarryingFeed[str] = CarryingFeed(short_order(), 2, 4, 1)
    resumed.restore(replace(state, outstanding=state.outstanding))
    again = [admission.id for admission in resumed.admit()]
    assert again == [*(g._replace(attempt=1) for g in state.outstanding), *new]


def test_a_checkpoint_knows_what_the_cap_followed(tmp_path: Path) -> None:
    cap = LengthCap(CapSettings(medians=4), 100)
    feed: Feed[Finished] = Feed(short_order(), 4, keeps_place=False)
    stage = SimulatedStage(tmp_path, 1, feed, 4, AgePolicy(0), steps=3, breaking=0.0, cap=cap)
    virtual_clock.run(stage.run())
    state = stage.loop.feed_state(3)
    assert state.median_length == cap.median == 2.0, "each sample of this pool has two tokens"
    assert LengthCap(CapSettings(medians=4), 100, state.median_length).tokens == cap.tokens == 8
