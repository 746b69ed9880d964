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
