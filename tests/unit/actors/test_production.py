from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.simulated import SimulatedEngine
from manta.actors.lanes import Admission
from manta.actors.production import (
    GivenGroups,
    GoldRows,
    SampledGroups,
    WrittenGroups,
    build_production,
    unscored,
)
from manta.envs.failures import GroupBroken
from manta.envs.group import Scoring
from manta.envs.protocols import ScoreReference
from manta.envs.records import (
    GIVEN,
    CompanionKind,
    GroupId,
    ReferenceStatistics,
    Score,
    Task,
    Trajectory,
    WeightVersion,
)
from manta.envs.tokenizer import build_tokenizer
from manta.envs.trajectory_files import write_groups
from tests.tiny import groups_of
from tests.unit.actors.lanes import TOKENIZER, lane, rewards
from tests.unit.envs.scripted import ABORT, ScriptedEngine

TEXT = build_tokenizer(TOKENIZER)
SCORING = Scoring(unscored)
FIRST = Admission(GroupId(0, 4, 1), index=7)


def engine(script: str = "8") -> ScriptedEngine:
    return ScriptedEngine(TEXT, lambda call, sample: script if sample == 0 else "9")


async def test_sampled_groups_come_from_the_engine() -> None:
    speaks = engine()
    production = build_production(
        lane(temperature=0.5, top_p=0.9, top_k=3), TOKENIZER, speaks.generate, SCORING
    )
    assert isinstance(production, SampledGroups)
    assert production.num_tasks == 80
    group = await production.make(FIRST)
    assert group.id == FIRST.id
    assert group.task == production.source.task(7)
    assert [t.artifact for t in group.trajectories] == ["8", "9"]
    assert {t.model for t in group.trajectories} == {"policy"}
    [request] = speaks.requests
    assert request.budgets == (4, 4)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 3)
    assert sampling.stop_token_ids == (TEXT.eos_id,)


async def test_seeds_follow_place_and_purpose_not_the_attempt() -> None:
    async def seeds(admission: Admission, **changes: object) -> tuple[int, ...]:
        speaks = engine()
        production = build_production(lane(**changes), TOKENIZER, speaks.generate, SCORING)
        await production.make(admission)
        return speaks.requests[0].seeds

    base = await seeds(FIRST)
    assert await seeds(Admission(FIRST.id._replace(attempt=2), 7)) == base
    assert await seeds(Admission(FIRST.id._replace(position=5), 7)) != base
    assert await seeds(FIRST, split="eval") != base
    assert await seeds(FIRST, name="other") != base
    assert await seeds(FIRST, seed=4) != base


async def test_a_group_that_the_engine_aborts_is_broken() -> None:
    aborting = ScriptedEngine(TEXT, lambda call, sample: ABORT)
    production = build_production(lane(), TOKENIZER, aborting.generate, SCORING)
    with pytest.raises(GroupBroken, match="aborted"):
        await production.make(FIRST)


async def test_given_groups_are_gold_answers_and_ask_no_engine() -> None:
    speaks = engine()
    production = build_production(lane(samples_from="given"), TOKENIZER, speaks.generate, SCORING)
    assert isinstance(production, GivenGroups)
    group = await production.make(FIRST)
    [trajectory] = group.trajectories
    assert (group.id, trajectory.model) == (FIRST.id, GIVEN)
    assert trajectory.artifact == str(group.task.reference)
    assert group.scores[0].value == 1.0
    assert speaks.requests == []


async def test_written_groups_are_read_back_under_the_feed_s_id(tmp_path: Path) -> None:
    groups = groups_of((2, 3))
    write_groups(str(tmp_path / "step=1" / "rank=0.parquet"), groups, 1)
    production = build_production(
        lane(samples_from="given", trajectories=str(tmp_path)),
        TOKENIZER,
        engine().generate,
        SCORING,
    )
    assert isinstance(production, WrittenGroups)
    assert production.num_tasks == 2
    group = await production.make(Admission(GroupId(3, 0, 2), index=1))
    assert group.id == GroupId(3, 0, 2)
    assert group.content_hash() == groups[1].content_hash()
    assert [s.value for s in group.scores] == [s.value for s in groups[1].scores]


async def test_written_groups_get_the_log_probs_of_this_run_s_reference(tmp_path: Path) -> None:
    write_groups(str(tmp_path / "step=1" / "rank=0.parquet"), groups_of((2,)), 1)

    async def reference(trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        logprobs = tuple(np.ones(len(t.token_ids), np.float32) for t in trajectories)
        return ReferenceStatistics("mine", logprobs)

    production = build_production(
        lane(samples_from="given", trajectories=str(tmp_path)),
        TOKENIZER,
        engine().generate,
        replace(SCORING, reference=reference),
    )
    group = await production.make(replace(FIRST, index=0))
    assert group.reference is not None
    assert group.reference.version == "mine"
    assert all(column.all() for column in group.reference.logprobs)


async def test_written_answers_are_compared_where_the_lane_says_so(tmp_path: Path) -> None:
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    options = {"train": str(tmp_path / "pairs.jsonl"), "eval_size": 1}
    of_pairs = lane(samples_from="given", env="preferences", env_options=options)
    makes = [
        build_production(each, TOKENIZER, engine().generate, SCORING)
        for each in (of_pairs, replace(of_pairs, compares=True))
    ]
    found = [await production.make(replace(FIRST, index=0)) for production in makes]
    assert [[t.artifact for t in group.trajectories] for group in found] == [["2"], ["2", "3"]]
    with pytest.raises(ValueError, match="'arithmetic' has one written answer a task"):
        build_production(
            lane(samples_from="given", compares=True), TOKENIZER, engine().generate, SCORING
        )


async def test_annotated_groups_get_new_scores_or_keep_theirs(tmp_path: Path) -> None:
    groups = groups_of((2, 3))
    write_groups(str(tmp_path / "step=1" / "written.parquet"), groups, 1)

    async def score(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        return tuple(
            Score(float("nan") if t.sample == 2 else 7.0, {"new": 7.0}) for t in trajectories
        )

    async def reference(trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        logprobs = tuple(np.full(len(t.token_ids), -1, np.float32) for t in trajectories)
        return ReferenceStatistics("stage:sft#1a2b3c4d", logprobs)

    scoring = Scoring(score, {"new": "1"}, reference)
    annotated = lane(trajectories=str(tmp_path), is_annotated=True, reward=rewards("new", new="x"))
    production = build_production(annotated, TOKENIZER, engine().generate, scoring)
    group = await production.make(Admission(GroupId(0, 1, 0), index=1))
    assert [s.value for s in group.scores] == [7.0, 7.0], "without a score a sample leaves"
    assert group.reward_versions == {"new": "1"}
    assert group.reference is not None and group.reference.version == "stage:sft#1a2b3c4d"
    assert len(group.reference.logprobs) == len(group.trajectories) == 2
    kept = build_production(
        replace(annotated, reward=None), TOKENIZER, engine().generate, Scoring(unscored)
    )
    group = await kept.make(Admission(GroupId(0, 0, 0), index=0))
    assert group.scores == groups[0].scores
    assert group.reward_versions == groups[0].reward_versions


def test_a_folder_without_trajectories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no trajectories"):
        build_production(lane(trajectories=str(tmp_path)), TOKENIZER, engine().generate, SCORING)


async def test_gold_rows_are_what_given_groups_train_on() -> None:
    given = build_production(lane(samples_from="given"), TOKENIZER, engine().generate, SCORING)
    rows = GoldRows(lane(), TOKENIZER)
    for index in range(5):
        ids, mask = rows.row(index)
        group = await given.make(Admission(GroupId(0, 0, 0), index))
        np.testing.assert_array_equal(ids, group.trajectories[0].token_ids)
        np.testing.assert_array_equal(mask, group.trajectories[0].loss_mask)


def test_gold_rows_end_at_the_context() -> None:
    whole, _ = GoldRows(lane(), TOKENIZER).row(0)
    ids, mask = GoldRows(lane(context=5), TOKENIZER).row(0)
    np.testing.assert_array_equal(ids, whole[:5])
    assert mask.tolist() == [False] * 4 + [True]


async def test_an_admission_may_cap_its_samples() -> None:
    speaks = engine()
    production = build_production(lane(redundant_samples=1), TOKENIZER, speaks.generate, SCORING)
    for cap in (3, 9, None):
        await production.make(replace(FIRST, cap=cap))
    assert [request.budgets for request in speaks.requests] == [(3,) * 3, (4,) * 3, (4,) * 3]
    assert {request.enough for request in speaks.requests} == {2}


async def test_a_written_companion_is_one_of_another_stage_s_samples(tmp_path: Path) -> None:
    """Of the same task, by epoch; read back, the reference is asked about it again."""
    makes = lane(samples_per_prompt=3, companions_from=None)
    lengths = SimulatedSettings(tokens_per_second=1e6, length_median=3.0, length_sigma=1.0)
    simulated = SimulatedEngine(lengths, TEXT.vocab_size, 16, 8, WeightVersion(0, 0))
    before = build_production(makes, TOKENIZER, simulated.generate, SCORING)
    tasks = [7, 3, 5]
    drawn = [await before.make(Admission(GroupId(0, i, 0), i)) for i in tasks]
    write_groups(str(tmp_path / "made" / "written.parquet"), drawn, 1)

    async def reference(trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        return ReferenceStatistics("ref", tuple(-t.loss_mask.astype("f4") for t in trajectories))

    scoring = Scoring(unscored, reference=reference)
    told = replace(makes, companion="written", companions_from=str(tmp_path / "made"))
    production = build_production(told, TOKENIZER, engine().generate, scoring)
    for index, group in zip(tasks, drawn, strict=True):
        taken = set()
        for epoch in range(3):
            found = await production.make(Admission(GroupId(epoch, 4, 1), index))
            assert found.companion is not None and found.companion.kind == "written"
            row = found.companion.trajectory
            assert row.task_id == group.task.id
            taken.add(row.token_ids.tobytes())
            looked = found.companion.reference_logprobs
            assert looked is not None and (looked == -row.loss_mask.astype("f4")).all()
        assert taken == {t.token_ids.tobytes() for t in group.trajectories}
    with pytest.raises(GroupBroken, match=f"no sample of it is written in {tmp_path / 'made'}"):
        await production.make(replace(FIRST, index=8))
    write_groups(str(tmp_path / "again" / "written.parquet"), [found], 1)
    reads = lane(trajectories=str(tmp_path / "again"), uses_reference=True)
    scoring = Scoring(unscored, reference=doubled(reference))
    back = build_production(reads, TOKENIZER, engine().generate, scoring)
    again = await back.make(replace(FIRST, index=0))
    assert len(again.row_references) == 4
    for looked, row in zip(again.row_references, again.rows, strict=True):
        assert looked is not None and (looked == -2 * row.loss_mask.astype("f4")).all()


def doubled(reference: ScoreReference) -> ScoreReference:
    async def score(trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        found = await reference(trajectories)
        return ReferenceStatistics(found.version, tuple(2 * each for each in found.logprobs))

    return score


@pytest.mark.parametrize("kind", ["greedy", "given"])
async def test_a_companion_changes_nothing_of_the_samples(
    kind: CompanionKind, tmp_path: Path
) -> None:
    """By the simulated engine, whose lengths and tokens follow from the seeds; written, read back,
    and scored again."""
    lengths = SimulatedSettings(tokens_per_second=1e6, length_median=3.0, length_sigma=1.0)
    simulated = SimulatedEngine(lengths, TEXT.vocab_size, 16, 8, WeightVersion(0, 0))
    groups = [
        await build_production(lane(companion=each), TOKENIZER, simulated.generate, SCORING).make(
            FIRST
        )
        for each in ("none", kind)
    ]
    for ours, theirs in zip(*(group.trajectories for group in groups), strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
    made = groups[1].companion
    assert groups[0].companion is None and made is not None
    assert made.kind == kind
    write_groups(str(tmp_path / "step=1" / "written.parquet"), [groups[1]], 1)
    annotated = lane(trajectories=str(tmp_path), is_annotated=True, reward=rewards("new", new="x"))

    async def score(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        return tuple(Score(float(each.sample), {}) for each in trajectories)

    for reward, wanted in ((annotated.reward, [0.0, 1.0, -1.0]), (None, [1.0, 1.0, 1.0])):
        production = build_production(
            replace(annotated, reward=reward), TOKENIZER, engine().generate, Scoring(score)
        )
        again = await production.make(replace(FIRST, index=0))
        assert [each.value for each in again.row_scores] == wanted
        assert again.companion is not None
        assert again.companion.trajectory.token_ids.tolist() == made.trajectory.token_ids.tolist()
