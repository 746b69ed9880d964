"""Prompts and given answers are measured as the environment workers will see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator import survey
from tests.unit.orchestrator.counted_env import Counted
from tests.unit.orchestrator.tiny_run import load

ENV = "env={name: 'tests.unit.orchestrator.counted_env:Counted', size: %s}"


def test_prompts_and_answers_are_measured(tmp_path: Path) -> None:
    surveyed = survey.look(load(tmp_path, ENV % 5))
    warm, rl = surveyed.prompts["warm"], surveyed.prompts["rl"]
    assert surveyed.problems == ()
    assert surveyed.vocab_size == 14
    assert (warm.num_train, warm.num_eval, warm.num_measured) == (5, 2, 7)
    assert (warm.longest, warm.longest_id) == (3, "counted/train/2")
    assert warm.mean == pytest.approx((1 + 2 + 3 + 1 + 2 + 1 + 2) / 7)
    assert (warm.longest_answer, rl.longest_answer) == (3, 0)


def test_without_evaluation_no_held_out_task_is_needed(tmp_path: Path) -> None:
    with_none = ENV.replace("}", ", eval_size: 0}") % 5
    assert survey.look(load(tmp_path, with_none, "evaluate=null")).problems == ()
    assert survey.look(load(tmp_path, with_none)).problems[0] == (
        "stages[0].env: environment 'tests.unit.orchestrator.counted_env:Counted' has no tasks in "
        "its eval split"
    )


def test_an_empty_environment_is_told(tmp_path: Path) -> None:
    problems = survey.look(load(tmp_path, ENV % 0)).problems
    assert problems[0].endswith("has no tasks in its train split")


def test_an_environment_without_gold_answers_cannot_be_given(tmp_path: Path) -> None:
    no_gold = ENV.replace("}", ", has_gold: false}") % 2
    problems = survey.look(load(tmp_path, no_gold)).problems
    assert problems[0] == (
        "stages[0].env: env 'counted' has no gold answers: it cannot be learnt by sft"
    )
    assert not any(problem.startswith("stages[1]") for problem in problems)


def test_a_gold_answer_that_is_not_right_is_told(tmp_path: Path) -> None:
    problems = survey.look(load(tmp_path, ENV.replace("}", ", reference: '3'}") % 9)).problems
    assert problems[0] == (
        "stages[0].env: task counted/train/0: its gold answer '22' is scored 0.0, not 1, against "
        "the reference '3': correct the task or drop it from the data"
    )
    assert problems[3] == "stages[0].env: 8 more tasks are broken", "three are shown"


def test_gold_likelihood_needs_the_held_out_gold_answers(tmp_path: Path) -> None:
    no_gold = ENV.replace("}", ", has_gold: false}") % 2
    told = survey.look(load(tmp_path, no_gold, "evaluate.gold_likelihood=true")).problems
    assert any(problem.startswith("stages[1].env: env 'counted' has no gold") for problem in told)


def test_stages_with_equal_needs_are_measured_once(tmp_path: Path) -> None:
    Counted.asked.clear()
    survey.look(load(tmp_path, ENV % 4, "stages.warm.algorithm=grpo"))
    assert Counted.asked == [0, 1, 2, 3]


def test_large_data_sets_are_measured_by_a_sample(tmp_path: Path) -> None:
    Counted.asked.clear()
    size = survey.ALL_MEASURED + 1
    surveyed = survey.look(load(tmp_path, ENV % size, "stages.warm.algorithm=grpo"))
    assert len(set(Counted.asked)) == survey.SAMPLE
    assert (Counted.asked[0], Counted.asked[-1]) == (0, size - 1)
    assert surveyed.prompts["rl"].num_train == size
    assert surveyed.prompts["rl"].num_measured == survey.SAMPLE + 2
