"""What a run file must say of a curriculum, and what is said back."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator import batch_plan, survey
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.run_changes import changes
from manta.orchestrator.strict import RunFileError
from tests.unit.orchestrator.tiny_run import TINY, load

LONG = TINY.replace("steps: 5", "steps: 11")
"""Of 8 prompts: more than the 80 tasks that there are."""
KEY = "stages[1].curriculum"


@pytest.mark.parametrize(
    "told",
    ["{nearest_to: 0.5}", "{high: 0.9}", "{low: 0.1, high: 0.9, rest_epochs: 3, nearest_to: 1}"],
)
def test_sound_ones_have_no_problems(tmp_path: Path, told: str) -> None:
    assert cross_check(load(tmp_path, f"stages.rl.curriculum={told}", text=LONG)) == []


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("{}", ": changes nothing: set nearest_to (0.5:"),
        ("{nearest_to: 1.5}", ".nearest_to: is 1.5, a pass rate must lie in 0..1"),
        ("{low: 0.8, high: 0.2}", ": keeps pass rates from 0.8 to 0.2: let low and high be within"),
        ("{low: -0.1}", ": changes nothing"),
        ("{high: 1.1, low: 0.1}", ": keeps pass rates from 0.1 to 1.1"),
        ("{low: 0.3, high: 0.4}", ": no share of 4 samples (samples_per_prompt) lies within 0.3"),
        ("{high: 0.9, rest_epochs: 0}", ".rest_epochs: is 0, must be at least 1"),
        ("{nearest_to: 1, rest_epochs: 2}", ".rest_epochs: is 2, and with low 0 and high 1 no"),
        ("{high: 0.9, component: corect}", ".component: there is no component 'corect'; did you"),
    ],
)
def test_what_cannot_act_is_refused(tmp_path: Path, told: str, expected: str) -> None:
    found = cross_check(load(tmp_path, f"stages.rl.curriculum={told}", text=LONG))
    assert [problem for problem in found if problem.startswith(KEY + expected)], found


def test_a_stage_shorter_than_an_epoch_is_told_how_long_it_must_be(tmp_path: Path) -> None:
    exact = ("stages.rl.curriculum.nearest_to=0.5", "stages.rl.steps=10")
    assert cross_check(load(tmp_path, *exact)) == [
        f"{KEY}: acts from the second epoch on, and the stage takes 80 tasks of a first one of 80: "
        "raise steps to 11 or more, give it fewer tasks, or remove this"
    ]
    filtered = "stages.rl.algorithm.filters=[zero_variance]"
    assert cross_check(load(tmp_path, *exact, filtered)) == [], "who knows how many it takes"


@pytest.mark.parametrize(
    "other",
    [
        "stages.warm.curriculum={high: 0.9}",
        "stages.rl={name: rl, kind: generate, algorithm: grpo, steps: 5, curriculum: {high: 0.9}}",
    ],
)
def test_only_stages_that_train_on_samples_have_pass_rates(tmp_path: Path, other: str) -> None:
    found = cross_check(load(tmp_path, other))
    assert [p for p in found if "curriculum: pass rates are those of samples" in p], found


def test_pass_rates_need_a_component(tmp_path: Path) -> None:
    by_kl = "stages.rl.algorithm={name: distillation}"
    none = ("stages.rl.reward=null", "stages.rl.evaluate=null", by_kl, "rollout.top_k=0")
    found = cross_check(load(tmp_path, "stages.rl.curriculum.high=0.9", *none, text=LONG))
    assert [p for p in found if p.startswith(f"{KEY}: a pass rate is of a component")], found
    renamed = ("reward={formula: right, components: {right: exact}}", "evaluate=null")
    told = cross_check(load(tmp_path, "stages.rl.curriculum.high=0.9", *renamed, text=LONG))
    assert told == [
        f"{KEY}.component: neither is there a component 'correct', nor does an evaluation count "
        "one that is there: name one of right"
    ]
    named = "stages.rl.curriculum.component=right"
    assert (
        cross_check(load(tmp_path, named, "stages.rl.curriculum.high=0.9", *renamed, text=LONG))
        == []
    )


def test_unknown_keys_are_told_and_a_resumed_run_keeps_its_curriculum(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="nearest_two"):
        load(tmp_path, "stages.rl.curriculum={nearest_two: 0.5}")
    [change] = changes(
        load(tmp_path, "stages.rl.curriculum.nearest_to=0.5", text=LONG),
        load(tmp_path, "stages.rl.curriculum.nearest_to=1", text=LONG),
    )
    assert change.problem == "may not change"


def test_it_is_said_back(tmp_path: Path) -> None:
    told = "stages.rl.curriculum={nearest_to: 0.5, high: 0.9, rest_epochs: 2}"
    run_file = load(tmp_path, told, text=LONG)
    lines = batch_plan.describe(run_file, run_file.stages[1], survey.look(run_file))
    assert (
        "from the second epoch on tasks come by their last pass rate ('correct'), those nearest to "
        "0.5 first; those not within 0 to 0.9 are left out for 2 epochs"
    ) in lines
