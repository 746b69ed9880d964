"""A row beside the samples: what a run file must say of it, and what is said back."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.actors.lanes import Lane
from manta.orchestrator import batch_plan, survey
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.lanes import eval_lane, train_lane
from manta.orchestrator.products import Products
from tests.unit.orchestrator.tiny_run import TINY, load

BESIDE = "stages.rl.algorithm={name: %s, samples_per_prompt: 4, kl: {coef: 0}}"
REMAX, GRAO = BESIDE % "remax", BESIDE % "grao"
CHAIN = TINY.replace(
    "rollout:",
    """\
  - {name: made, kind: generate, algorithm: {name: grao}, steps: 1}
  - {name: judged, kind: annotate, trajectories: stage:made}
  - {name: learnt, algorithm: {name: remax, kl: {coef: 0}}, trajectories: stage:judged, steps: 1}
rollout:""",
)
REFERENCE = """\
  - name: ref
    kind: generate
    algorithm: {name: grpo, samples_per_prompt: 2}
    steps: 10
    prompts_per_step: 8
"""
WARM = "  - {name: warm, algorithm: sft, steps: 3, prompts_per_step: 4}\n"
XPO = TINY.replace(
    "  - name: rl\n    algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0.0}}\n",
    REFERENCE + "  - name: rl\n    algorithm: xpo\n    companions_from: stage:ref\n",
)
"""80 tasks, of each of which the stage `ref` writes samples."""


@pytest.mark.parametrize("algorithm", [REMAX, GRAO])
def test_sound_ones_have_no_problems(tmp_path: Path, algorithm: str) -> None:
    assert cross_check(load(tmp_path, algorithm)) == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            [
                REMAX,
                "reward.components={correct: exact, distinct: distinct}",
                "reward.formula=correct + distinct",
            ],
            "stages[1].reward.formula: 'distinct' looks at several samples at once (scope group), "
            "and the greedy companion is none of them: leave it out of the formula, or",
        ),
        (
            [GRAO, "env={name: 'tests.unit.orchestrator.counted_env:Counted', size: 4, "
             "has_gold: false}", "stages.warm.algorithm=grpo"],
            "stages[1].env: env 'counted' has no gold answers",
        ),
        (
            ["stages.rl.algorithm.companion=greedy"],
            "stages[1].algorithm: algorithm 'grpo': companion is greedy, but advantage "
            "group_relative does not read it",
        ),
        (
            ["stages.rl.algorithm.advantage=greedy_baseline"],
            "stages[1].algorithm: algorithm 'grpo': advantage greedy_baseline needs a greedy",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path: Path, overrides: list[str], told: str) -> None:
    found = cross_check(load(tmp_path, *overrides))
    assert [problem for problem in found if problem.startswith(told)], found


JUDGED = "  - {name: judged, kind: annotate, trajectories: stage:ref}\n  - name: rl\n"


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (XPO, []),
        (XPO, ["stages.rl.algorithm.samples_per_prompt=3"]),
        (XPO, ["stages.rl.algorithm={name: online_dpo, pairs: companion, companion: written}"]),
        (XPO, ["stages.rl.start_from=stage:warm", "stages.ref.model=stage:warm"]),
        (XPO, ["stages.rl.reference={model: initial}", "stages.ref.model=initial"]),
        (XPO.replace("  - name: rl\n", JUDGED), ["stages.rl.companions_from=stage:judged"]),
    ],
)
def test_rows_of_a_stage_that_samples_from_the_reference_pass(
    tmp_path: Path, text: str, overrides: list[str]
) -> None:
    assert cross_check(load(tmp_path, *overrides, text=text)) == []


AT = "stages[2].companions_from: "
DPO = "stages.rl.algorithm={name: online_dpo, pairs: companion, companion: written}"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["stages.rl.companions_from=null"], AT + "algorithm.companion is written: say whose"),
        (["stages.rl.algorithm=online_dpo"], AT + "this stage makes no groups with a companion of"),
        (["stages.rl.companions_from=stage:reff"], AT + "there is no stage 'reff' before this one"),
        (["stages.rl.companions_from=stage:warm"], AT + "stage 'warm' is of kind train and leaves"),
        (["stages.rl.companions_from=models/base"], AT + "'models/base' names no stage"),
        (
            ["stages.rl.env={name: arithmetic, digits: 2, eval_size: 20}"],
            AT + "the tasks of stage 'ref' are those of another environment: give both stages the",
        ),
        (
            ["stages.ref.steps=9"],
            AT + "stage 'ref' writes samples of 72 tasks, and the environment has 80: let it make "
            "10 steps, so that there is a row to stand beside the samples of each",
        ),
        (
            ["stages.rl.start_from=initial"],
            AT + "stage 'ref' samples from 'stage:warm', and the reference of this stage is "
            "'initial': XPO compares with samples of the reference, so name the same weights in",
        ),
        (
            ["stages.rl.reference={refresh: {every_steps: 2}}"],
            AT + "the reference of this stage follows the policy, and XPO compares with samples",
        ),
        (["reference.model=ema(0.9)"], AT + "the reference of this stage follows the policy"),
        (["stages.ref.algorithm=sft"], AT + "stage 'ref' writes given answers, and XPO compares"),
        (
            ["stages.ref.companions_from=stage:warm"],
            "stages[1].companions_from: this stage makes no groups with a companion of kind",
        ),
        (
            ["reward.components={correct: exact, distinct: distinct}",
             "reward.formula=correct + distinct"],
            "stages[2].reward.formula: 'distinct' looks at several samples at once (scope group), "
            "and the written companion is none of them",
        ),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_told(tmp_path: Path, overrides: list[str], told: str) -> None:
    found = cross_check(load(tmp_path, *overrides, text=XPO))
    assert [problem for problem in found if problem.startswith(told)], found


def test_only_xpo_wants_samples_of_its_reference(tmp_path: Path) -> None:
    for override in ("stages.rl.start_from=initial", "reference.model=ema(0.9)"):
        assert cross_check(load(tmp_path, DPO, override, text=XPO)) == []


def test_a_lane_knows_the_folder_of_its_written_rows(tmp_path: Path) -> None:
    loaded, products = load(tmp_path, text=XPO), Products(tmp_path)
    with pytest.raises(ValueError, match="there is no product 'stage:ref'"):
        train_lane(loaded, loaded.stages[2], products)
    product = products.write("ref", "data", 3, lambda folder: (folder / "a").write_text("b"))
    assert product.kind == "data"
    lanes = [train_lane(loaded, stage, products) for stage in loaded.stages]
    assert [lane.companion for lane in lanes] == ["none", "none", "written"]
    folder = products.folder("stage:ref", "data")
    assert [lane.companions_from for lane in lanes] == [None, None, str(folder)]


def test_a_component_beside_the_formula_may_look_at_several_samples(tmp_path: Path) -> None:
    measured = "reward.components={correct: exact, distinct: distinct}"
    assert cross_check(load(tmp_path, REMAX, measured)) == []


def test_groups_of_an_earlier_stage_must_have_what_is_read(tmp_path: Path) -> None:
    [problem] = cross_check(load(tmp_path, text=CHAIN))
    assert problem == (
        "stages[4].algorithm.companion: is greedy, and the groups of stage 'made' are made with "
        "companion given: set the same in both"
    )
    same = "stages.learnt.algorithm=grao"
    assert cross_check(load(tmp_path, same, text=CHAIN)) == []


def test_lanes_that_train_make_it_and_evaluations_do_not(tmp_path: Path) -> None:
    loaded = load(tmp_path, REMAX)
    stage = loaded.stages[1]
    assert stage.evaluate is not None
    products = Products(tmp_path)
    lanes: list[Lane] = [
        train_lane(loaded, stage, products),
        eval_lane(loaded, stage, stage.evaluate),
    ]
    assert [lane.companion for lane in lanes] == ["greedy", "none"]
    assert lanes[0].samples_per_prompt == 4


def told(folder: Path, *overrides: str) -> list[str]:
    loaded = load(folder, *overrides)
    return batch_plan.describe(loaded, loaded.stages[1], survey.look(loaded))


def test_the_plan_says_whose_rows_are_compared(tmp_path: Path) -> None:
    loaded = load(tmp_path, "stages.rl.algorithm.samples_per_prompt=3", text=XPO)
    lines = batch_plan.describe(loaded, loaded.stages[2], survey.look(loaded))
    assert lines[0].startswith("8 prompts x (3 samples and one of stage:ref) = 32 rows a step")
    assert lines[4] == (
        "pairs: every sample with the row beside it, where their rewards differ, at most 24 pairs "
        "a step; every pair counts the same; prompts without one are filtered; the loss is XPO "
        "with beta 0.1 and exploration coefficient 1e-05 against the weights at the start of the "
        "stage"
    )


def test_the_plan_counts_it(tmp_path: Path) -> None:
    remax, grao = told(tmp_path, REMAX), told(tmp_path, GRAO)
    assert remax[0].startswith(
        "8 prompts x (4 samples and a greedy one, its baseline) = 40 completions a step, at most "
        "about 320 tokens"
    )
    assert grao[0].startswith(
        "8 prompts x (4 samples and its given answer) = 40 rows a step, at most about 320 tokens"
    )
    assert "no importance ratio: nothing bounds an update" in (remax[4], grao[4])
    micro = "about 3 micro-batches an update of at most 128 tokens on 1 learner rank"
    assert (remax[1] == micro, grao[1] == micro) == (False, True)
    charged = told(tmp_path, "stages.rl.algorithm=remax")
    assert charged[4] == (
        "no importance ratio: nothing bounds an update; KL to the weights at the start of the "
        "stage, 0.05 x k1 in the reward, discounted by 0 a token"
    )
