"""Repeats of a run file are stages of their own, by the time that it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator import run_file
from manta.orchestrator.run_file import RunFileError
from tests.unit.orchestrator.tiny_run import TINY, load

HEAD, _, TAIL = TINY.partition("stages:\n")
TAIL = TAIL[TAIL.index("rollout:") :]
GROUP = (
    HEAD
    + """\
stages:
  - {name: warm, algorithm: sft, steps: 3}
  - repeat: 2
    stages:
      - {name: sample, kind: generate, algorithm: sft, steps: 1, evaluate: null}
      - {name: learn, algorithm: sft, trajectories: stage:sample, steps: 2}
  - {name: last, repeat: 1, kind: merge, models: [initial, "stage:learn"]}
"""
    + TAIL
)


def test_groups_and_single_stages_are_written_out_in_order(tmp_path: Path) -> None:
    loaded = load(tmp_path, text=GROUP)
    names = [stage.name for stage in loaded.stages]
    assert names == ["warm", "sample@1", "learn@1", "sample@2", "learn@2", "last@1"]
    assert {stage.trajectories for stage in loaded.stages} == {None, "stage:sample"}
    assert loaded.stages[1].env == loaded.stages[0].env, "members inherit"
    assert loaded.stages[-1].env is None and loaded.stages[-1].evaluate is None


def test_the_resolved_copy_loads_to_the_same_run(tmp_path: Path) -> None:
    loaded = load(tmp_path, text=GROUP)
    path = tmp_path / "again.yaml"
    path.write_text(run_file.dump(loaded))
    assert run_file.load(path) == loaded


def test_overrides_find_a_stage_inside_of_a_group(tmp_path: Path) -> None:
    loaded = load(tmp_path, "stages.learn.steps=7", "stages.last.repeat=2", text=GROUP)
    assert [stage.steps for stage in loaded.stages if stage.name.startswith("learn")] == [7, 7]
    assert [stage.name for stage in loaded.stages][-2:] == ["last@1", "last@2"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("repeat: 2", "repeat: 0", "expected how many times, a whole number from 1 on"),
        ("repeat: 2", "repeat: two", "expected how many times"),
        ("  - repeat: 2\n    stages", "  - stages", "needs `repeat: K` beside it"),
        ("repeat: 2", "repeat: 2\n    step: 3", "unknown key of repeated stages"),
        ("{name: learn,", "{name: learn, repeat: 2,", "a repeat inside a repeat"),
    ],
)
def test_what_is_wrong_with_a_repeat_is_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(RunFileError) as caught:
        load(tmp_path, text=GROUP.replace(old, new))
    assert told in str(caught.value)
