"""Tags by reward and feedback that trains: what a run file must say, and what is said back."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.actors.lanes import Lane
from manta.envs.hindsight import Hindsight
from manta.orchestrator import batch_plan, survey
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.lanes import eval_lane, train_lane
from manta.orchestrator.products import Products
from tests.unit.orchestrator.tiny_run import TINY, load

TEXT = TINY.replace("char:0123456789+=", "byte").replace("context: 24", "context: 48")
LETI = "stages.rl.algorithm={name: leti, samples_per_prompt: 4}"
TALKS = "env={name: arithmetic, digits: 1, eval_size: 20, last_word: true}"
TAGS = "stages.rl.algorithm={name: raft, samples_per_prompt: 4, condition: {tags: [no, ok]}}"
BATCH = "tests.unit.orchestrator.test_condition_check:WholeStep"
WRITTEN = TEXT.replace(
    "rollout:",
    """\
  - {name: made, kind: generate, algorithm: {name: leti, samples_per_prompt: 4}, steps: 1}
  - {name: judged, kind: annotate, trajectories: stage:made, reference_logprobs: true}
  - {name: learnt, algorithm: leti, trajectories: stage:judged, steps: 1}
rollout:""",
)


class WholeStep:
    version = "0"

    async def score_batch(self, groups: object, services: object) -> list[list[float]]:
        raise AssertionError("nothing starts")


@pytest.mark.parametrize(
    "overrides",
    [
        [TALKS, LETI],
        [TAGS],
        [TAGS, "stages.rl.tag=no"],
        ["stages.rl.tag='plain: '", "stages.warm.tag=any"],
        [LETI, TALKS.replace("last_word: true", "tries: 2")],
    ],
)
def test_sound_ones_have_no_problems(tmp_path: Path, overrides: list[str]) -> None:
    assert cross_check(load(tmp_path, *overrides, text=TEXT)) == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([LETI], "stages[1].algorithm.train_feedback: 'arithmetic' is of one turn, and says"),
        (
            [TALKS, LETI, "stages.rl.reward=null", "stages.rl.evaluate=null"],
            "stages[1].reward: algorithm 'leti' learns from rewards, name one",
        ),
        (
            [TAGS, "stages.rl.tag=bad"],
            "stages[1].tag: is 'bad', under which no row is learnt: choose one of "
            "algorithm.condition.tags ('no', 'ok'), or leave it out for the best one",
        ),
        (
            ["stages.rl.algorithm.condition={tags: [no, ok]}"],
            "stages[1].algorithm: algorithm 'grpo': condition learns rows under other prompts",
        ),
        (
            [TAGS.replace("raft", "leti").replace("no, ok", "ok, ok")],
            "stages[1].algorithm: algorithm 'leti': condition.tags: 'ok' stands in them more than",
        ),
        (
            ["stages.rl.algorithm=c_rlft"],
            "stages[1].env: 'arithmetic' has one written answer a task, and algorithm 'c_rlft' ",
        ),
        (
            ["stages.warm.algorithm={name: sft, train_feedback: true}"],
            "stages[0].algorithm.train_feedback: given answers are of one turn",
        ),
        (
            [TAGS, "reward={formula: correct, components: {correct: exact, all: {reward: "
             f"'{BATCH}'" + "}}}"],
            "stages[1].reward.components.all: looks at a whole step (scope batch), and",
        ),
        (
            [TAGS.replace("no, ok", f"no, {'very ' * 12}long")],
            "stages[1].env: 100 of 100 tasks measured do not fit model.context (48); the longest "
            "is task arithmetic/",
        ),
        (
            [TAGS, "model.tokenizer='char:0123456789+=ok'"],
            "stages[1].env: task arithmetic/0+0: character 'n' of 'no0+0=' is not in",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path: Path, overrides: list[str], told: str) -> None:
    found = cross_check(load(tmp_path, *overrides, text=TEXT))
    assert [problem for problem in found if problem.startswith(told)], found


def test_stages_whose_prompts_nobody_sees_have_no_tag(tmp_path: Path) -> None:
    text = TEXT.replace(
        "rollout:", "  - {name: m, kind: merge, models: [stage:warm, stage:rl]}\nrollout:"
    )
    assert cross_check(load(tmp_path, text=text)) == []
    [problem] = cross_check(load(tmp_path, "stages.m.tag=x", text=text))
    assert problem == ("stages[2].tag: no prompt of this stage is sampled or evaluated: remove it")


def test_groups_of_an_earlier_stage_need_rewards(tmp_path: Path) -> None:
    assert cross_check(load(tmp_path, text=WRITTEN)) == []
    none = ("stages.made.reward=null", "stages.judged.reward=null", "stages.made.evaluate=null")
    [problem] = cross_check(load(tmp_path, *none, text=WRITTEN))
    assert problem == (
        "stages[4].algorithm.condition: the groups of stage 'made' have no rewards, so that all "
        "would have the best tag: give that stage a reward, or annotate them with one"
    )
    assert cross_check(load(tmp_path, none[0], none[2], text=WRITTEN)) == []


def lanes(folder: Path, *overrides: str, stage: str = "rl") -> tuple[Lane, Lane]:
    loaded = load(folder, *overrides, text=WRITTEN)
    [found] = [each for each in loaded.stages if each.name == stage]
    assert found.evaluate is not None
    lane = train_lane(loaded, found, Products(folder))
    return lane, eval_lane(loaded, found, found.evaluate)


def test_what_is_learnt_is_what_is_used(tmp_path: Path) -> None:
    learns, examines = lanes(tmp_path, TAGS)
    assert (learns.tag, examines.tag) == ("ok", "ok")
    assert learns.hindsight == Hindsight(("no", "ok"), (0.5,), False)
    assert examines.hindsight is None, "evaluations measure, and learn nothing"
    asked, examined = lanes(tmp_path, TAGS, "stages.rl.tag=no")
    assert (asked.tag, examined.tag) == ("no", "no")
    plain, later = lanes(tmp_path), lanes(tmp_path, "stages.rl.tag='good: '")
    assert [lane.tag for lane in (*plain, *later)] == ["", "", "good: ", "good: "]
    assert {lane.hindsight for lane in (*plain, *later)} == {None}
    written, _ = lanes(tmp_path, stage="made")
    assert (written.tag, written.hindsight) == ("<|good|>", None), "written as it was sampled"
    told, _ = lanes(tmp_path, "stages.rl.algorithm={name: raft, train_feedback: true}")
    assert told.hindsight == Hindsight(trains_feedback=True)


def test_prompts_are_measured_with_the_longest_tag(tmp_path: Path) -> None:
    plain = survey.look(load(tmp_path, text=TEXT)).prompts
    tagged = survey.look(load(tmp_path, TAGS.replace("no, ok", "nonono, ok"), text=TEXT)).prompts
    assert tagged["rl"].longest == plain["rl"].longest + 6
    assert tagged["warm"] == plain["warm"]


def test_the_plan_says_so(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        TALKS,
        "stages.rl.algorithm={name: leti, samples_per_prompt: 4, condition: {tags: [c, b, a], "
        "bounds: [0, 0.5]}}",
        text=TEXT.replace("rollout:", "  - {name: exam, kind: evaluate}\nrollout:"),
    )
    seen = survey.look(loaded)
    lines = batch_plan.describe(loaded, loaded.stages[1], seen)
    assert (
        "no importance ratio: cross-entropy needs no log-probs of a behaviour policy; a row is "
        "learnt under the tag of its reward: 'c' up to 0, 'b' up to 0.5, else 'a'; what the "
        "environment says after the policy's first turn is learnt too"
    ) in lines
    assert "before every prompt stands 'a'" in lines
    exam = batch_plan.describe(loaded, loaded.stages[2], seen)
    assert (
        "note: stage 'rl' has learnt under tags, the best one 'a', and here none stands before the "
        "prompts: set tag"
    ) in exam
    first = batch_plan.describe(loaded, loaded.stages[0], seen)
    assert not any("before" in line for line in first)
