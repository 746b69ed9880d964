"""`--resume`: what it asks for, where it is refused before anything starts, and going back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from manta.envs.records import Json
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.cli import main
from manta.orchestrator.lives import Lives
from manta.orchestrator.resume import Asked, asked, origin
from manta.orchestrator.run_directory import RunDirectory
from tests.trained_run import TrainedRun
from tests.unit.orchestrator.tiny_run import load, write

ELSEWHERE = "checkpoint.path={}/kept"


class Events:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, name: str, fields: Mapping[str, Json], text: str) -> None:
        self.texts.append(text or f"{name}: {json.dumps(fields)}")


def ask(folder: Path, text: str, *overrides: str) -> Asked:
    lives = Lives(RunDirectory(folder / "tiny"))
    return asked(text, lives, load(folder, f"run.dir={folder}", *overrides))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_words_of_the_option(tmp_path: Path, elsewhere: bool) -> None:
    overrides = [ELSEWHERE.format(tmp_path)] if elsewhere else []
    run = TrainedRun(tmp_path, (2, 4), *overrides)
    assert ask(tmp_path, "auto", *overrides) == Asked()
    for text in ("2", "000002", f"{run.place}/step=000002", f"{run.place}/step=000002/"):
        assert ask(tmp_path, text, *overrides).step == 2
    found = ask(tmp_path, "2", "learner.workers=2", *overrides)
    assert [str(change) for change in found.changed] == ["learner.workers: 1 -> 2"]


def test_a_new_run_starts_whatever_is_asked_of_old_ones(tmp_path: Path) -> None:
    assert ask(tmp_path, "auto") == ask(tmp_path, "never") == Asked()
    with pytest.raises(ValueError, match="has no checkpoint of step 2; it has none"):
        ask(tmp_path, "2")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("never", "tiny holds a run already, and nothing of it was touched: choose another run."),
        ("3", "tiny has no checkpoint of step 3; there are those of steps 2, 4"),
        (
            "newest",
            "is 'newest', must be auto, never, the number of a step, or the path of a check",
        ),
        ("step=two", "is 'step=two', must be auto, never"),
        ("runs/other/checkpoints/step=000002", "is no checkpoint of "),
        ("s3://bucket/step=000002", "write them as a folder (manta export RUN_DIR@STEP FOLDER)"),
    ],
)
def test_what_cannot_be_exits_2_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    run = TrainedRun(tmp_path, (2, 4))
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    assert main(["train", write(tmp_path), f"run.dir={tmp_path}", "--resume", text]) == 2
    error = capsys.readouterr().err
    assert error.startswith("manta train: --resume")
    assert told in error
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before


def test_a_run_that_goes_back_is_not_finished_any_more_and_leaves_what_came_later(
    tmp_path: Path,
) -> None:
    run = TrainedRun(tmp_path, (2, 4, 6))
    directory = RunDirectory(run.root)
    directory.summary.write_text('{"state": "finished"}')
    checkpoints, events = Checkpoints(run.place, keep=9), Events()
    found = origin(checkpoints, directory, ask(tmp_path, "2", "learner.workers=2"))
    assert found.checkpoint is not None and found.checkpoint.state.step == 2
    assert checkpoints.steps() == [2]
    assert not directory.summary.exists()
    found.tell(events)
    assert events.texts == [
        "run file changed: learner.workers: 1 -> 2",
        'checkpoints left behind: {"steps": [6, 4]}',
    ]


def test_one_to_go_back_to_that_is_damaged_costs_nothing(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path, (2, 4))
    shard = run.root / "checkpoints/step=000002/learner/model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    checkpoints = Checkpoints(run.place, keep=9)
    with pytest.raises(ValueError, match=r"step=000002: .*model\.safetensors has \d+ bytes, "):
        origin(checkpoints, RunDirectory(run.root), Asked(2))
    assert checkpoints.steps() == [2, 4]


def test_a_damaged_newest_one_is_passed_over_and_told(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path, (2, 4))
    (run.root / "checkpoints/step=000004/learner/optimizer.safetensors").unlink()
    found, events = origin(Checkpoints(run.place, 9), RunDirectory(run.root), Asked()), Events()
    assert found.checkpoint is not None and found.checkpoint.state.step == 2
    found.tell(events)
    [told] = events.texts
    assert told.startswith("damaged checkpoint passed over: ")
    assert "step=000004: learner/optimizer.safetensors is missing" in told
