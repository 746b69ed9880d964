"""A run file's `checkpoint`, checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.checkpoint_check import checkpoint_problems
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.run_changes import changes
from tests.unit.orchestrator.tiny_run import load


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("checkpoint.keep_best=2", "checkpoint.every_steps=5", "stages.rl.steps=6"),
        ("checkpoint.keep_best=2", "checkpoint.best_by=reward/mean", "evaluate=null"),
    ],
)
def test_accepts(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert list(checkpoint_problems(load(tmp_path, *overrides))) == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["checkpoint.every_steps=0"], "checkpoint.every_steps: is 0, must be at least 1"),
        (["checkpoint.keep=0"], "checkpoint.keep: is 0, must be at least 1"),
        (["checkpoint.keep_best=-1"], "checkpoint.keep_best: is -1, must be at least 0"),
        (["checkpoint.keep_best=1", "evaluate=null"],
         "checkpoint.keep_best: the best are told by eval/accuracy, and no stage that trains has "
         "an evaluate block: add one"),
        (["checkpoint.keep_best=1", "checkpoint.every_steps=2"],
         "checkpoint.keep_best: no stage has a checkpoint (every 2 steps) at a step that is "
         "evaluated, but for its last, which is kept anyway"),
        (["checkpoint.keep_best=1", "checkpoint.every_steps=1", "stages.rl.steps=9",
          "checkpoint.best_by=eval/gold_logprob"],
         "checkpoint.best_by: is eval/gold_logprob, which is measured with "
         "evaluate.gold_likelihood"),
        (["checkpoint.path=nowhere://at/all"], "checkpoint.path: 'nowhere://at/all' cannot be "
         "used from here"),
    ],
)  # fmt: skip
def test_refuses(tmp_path: Path, overrides: list[str], told: str) -> None:
    run_file = load(tmp_path, *overrides)
    found = list(checkpoint_problems(run_file))
    assert [problem for problem in found if problem.startswith(told)], found
    assert set(found) <= set(cross_check(run_file))


def test_a_run_keeps_its_place_and_may_change_what_it_keeps(tmp_path: Path) -> None:
    before = load(tmp_path)
    kept = load(tmp_path, "checkpoint.keep=9", "checkpoint.keep_best=2")
    moved = load(tmp_path, "checkpoint.path=s3://bucket/folder")
    assert [change.problem for change in changes(before, kept)] == ["", ""]
    [change] = changes(before, moved)
    assert str(change) == 'checkpoint.path: null -> "s3://bucket/folder" (may not change)'
