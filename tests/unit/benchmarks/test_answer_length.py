"""What the comparison of lengths trains on, and says."""

from __future__ import annotations

import pytest

from benchmarks import answer_length
from benchmarks.answer_length import Answers
from benchmarks.padded_sums import MAX_ZEROS, PaddedSums


def test_padded_sums_are_right_and_of_every_length() -> None:
    env = PaddedSums(digits=1, eval_size=20)
    source = env.source("train")
    tasks = [source.task(index) for index in range(len(source))]
    assert all(env.verifier.judge(task, env.gold(task)) == 1 for task in tasks)
    zeros = {len(env.gold(task)) - len(str(task.reference)) for task in tasks}
    assert zeros == set(range(MAX_ZEROS + 1))


def test_lengths_are_compared_seed_by_seed() -> None:
    warm = Answers(0.2, 6.0)
    seeds = [
        {"grpo": (warm, Answers(0.5, 6.0)), "grpo_lambda": (warm, Answers(0.5, 3.0))},
        {"grpo": (warm, Answers(0.7, 4.0)), "grpo_lambda": (warm, Answers(0.6, 4.0))},
    ]
    found = {figure.name: figure for figure in answer_length.figures(seeds)}
    assert found["warm start: length"].value == 6
    assert found["length, of GRPO's"].samples == [0.5, 1]
    assert found["accuracy lost to GRPO"].value == pytest.approx(0.05)
