"""Checkpoints: what is visible is whole, whatever happened while it was written."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from manta.envs.records import GroupId
from manta.orchestrator.checkpoint import CheckpointFailed, Checkpoints, RunState
from manta.orchestrator.feed import FeedState

FEED = FeedState(2, 17, (GroupId(1, 5, 2), GroupId(2, 16, 0)))


def state(step: int, stage: str = "rl", ends_stage: bool = False) -> RunState:
    return RunState(
        step=step,
        stage=stage,
        stage_step=step - 3,
        ends_stage=ends_stage,
        feed=FEED,
        ledger_position=100 * step,
        metrics_position=10 * step,
        incarnation=1,
    )


def save(checkpoints: Checkpoints, saved: RunState, learner: str | None = "weights") -> Path:
    folder = checkpoints.begin(saved.step)
    if learner is not None:
        (folder / "model.safetensors").write_text(f"{learner} {saved.step}")
    return checkpoints.commit(saved).folder


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step=")) for path in folder.glob("step=*"))


@contextmanager
def files_no_longer_than(num_bytes: int) -> Iterator[None]:
    """A disk that is full once a file has `num_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("feed", [FEED, replace(FEED, median_length=17.5), None])
def test_what_was_saved_comes_back(tmp_path: Path, feed: FeedState | None) -> None:
    saved = replace(state(7), feed=feed)
    save(Checkpoints(tmp_path, keep=2), saved)
    found, warnings = Checkpoints(tmp_path, keep=2).latest()
    assert found is not None
    assert found.state == saved
    assert warnings == []
    assert found.learner is not None
    assert (found.learner / "model.safetensors").read_text() == "weights 7"


def test_a_new_run_has_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new", keep=1)
    assert checkpoints.latest() == (None, [])
    assert checkpoints.newest_learner(100) is None
    assert checkpoints.stage_end("rl") is None


def test_a_stage_that_only_samples_has_no_learner(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, state(4))
    save(checkpoints, state(5), learner=None)
    found, _ = checkpoints.latest()
    assert found is not None and found.learner is None
    assert checkpoints.newest_learner(5) == tmp_path / "step=000004" / "learner"
    assert checkpoints.newest_learner(3) is None


def test_a_crash_before_the_rename_leaves_the_old_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, state(4))
    (checkpoints.begin(5) / "model.safetensors").write_text("half")
    later = Checkpoints(tmp_path, keep=2)
    found, warnings = later.latest()
    assert found is not None
    assert (found.state.step, warnings) == (4, [])
    save(later, state(6))
    assert not list(tmp_path.glob(".step=*"))
    assert steps(tmp_path) == [4, 6]


def test_it_appears_at_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    partial = checkpoints.begin(4).parent
    assert steps(tmp_path) == []
    inode = partial.stat().st_ino
    assert checkpoints.commit(state(4)).folder.stat().st_ino == inode, "renamed, not copied"


def test_beginning_again_clears_what_a_crash_left(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (checkpoints.begin(5) / "leftover").write_text("half")
    folder = save(checkpoints, state(5))
    assert [path.name for path in (folder / "learner").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "learner/model.safetensors").write_text("weights 9"), "model.safetensors"),
        (lambda f: (f / "learner/model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "state.json").write_text("{}"), "state.json"),
        (lambda f: (f / "state.json").unlink(), "state.json"),
        (lambda f: (f / "manifest.json").unlink(), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text('{"format": 1, "fil'), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text("[]"), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text('{"format": 1, "files": {}}'), "state.json"),
        (
            lambda f: (f / "manifest.json").write_text('{"format": 2, "files": {}}'),
            "has format 2, this version reads 1",
        ),
    ],
)
def test_a_damaged_one_is_passed_over_by_name(tmp_path: Path, damage, told: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, state(4))
    damage(save(checkpoints, state(8)))
    found, [warning] = checkpoints.latest()
    assert found is not None and found.state.step == 4
    assert "step=000008" in warning
    assert told in warning
    assert checkpoints.newest_learner(4) == tmp_path / "step=000004" / "learner"
    with pytest.raises(ValueError, match="step=000008"):
        checkpoints.newest_learner(8)


def test_only_the_last_are_kept_but_every_stage_end_is(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 9):
        save(checkpoints, state(step, ends_stage=step in (2, 5)))
    assert steps(tmp_path) == [2, 5, 7, 8]
    assert not list(tmp_path.glob(".*"))


def test_more_than_a_million_steps_stay_in_order(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_998, 999_999, 1_000_000):
        save(checkpoints, state(step))
    found, _ = checkpoints.latest()
    assert found is not None and found.state.step == 1_000_000
    assert steps(tmp_path) == [999_999, 1_000_000]


def test_what_lies_beyond_a_damaged_one_never_costs_the_new_one(tmp_path: Path) -> None:
    """A run that went back to step 2 keeps what it saves, although damaged ones have higher
    numbers; they are replaced as it comes to their steps."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, state(2, ends_stage=True))
    for step in (4, 6, 8):
        folder = save(Checkpoints(tmp_path, keep=9), state(step))
        (folder / "manifest.json").unlink()
    (tmp_path / "step=000008" / "state.json").write_text("torn")
    save(checkpoints, state(4))
    found, warnings = checkpoints.latest()
    assert found is not None and found.state.step == 4
    assert len(warnings) == 2
    save(checkpoints, state(6))
    save(checkpoints, state(8))
    found, warnings = checkpoints.latest()
    assert found is not None
    assert (found.state.step, warnings) == (8, [])
    assert steps(tmp_path) == [2, 8]


def test_the_product_of_a_stage_is_its_newest_end(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, state(3, "warm", ends_stage=True))
    save(checkpoints, state(5, "rl", ends_stage=True))
    save(checkpoints, state(7, "rl", ends_stage=True))  # its steps were raised
    save(checkpoints, state(8, "later"))
    for stage, step in (("warm", 3), ("rl", 7)):
        end = checkpoints.stage_end(stage)
        assert end is not None and end.state.step == step
    assert checkpoints.stage_end("later") is None


def test_a_damaged_stage_end_is_never_taken_for_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    folder = save(checkpoints, state(3, "warm", ends_stage=True))
    save(checkpoints, state(5))
    (tmp_path / "step=000005" / "manifest.json").unlink()  # another one: no matter
    assert checkpoints.stage_end("warm") is not None
    (folder / "learner" / "model.safetensors").write_text("other")
    with pytest.raises(ValueError, match=r"model\.safetensors is missing or damaged"):
        checkpoints.stage_end("warm")
    (folder / "state.json").write_text("torn")
    with pytest.raises(ValueError, match=r"step=000003 has no readable state\.json"):
        checkpoints.stage_end("warm")


def test_a_full_disk_is_told_and_costs_no_older_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, state(4))
    folder = checkpoints.begin(6)
    (folder / "model.safetensors").write_text("weights 6")
    with files_no_longer_than(64), pytest.raises(CheckpointFailed, match="step 6 could not be"):
        checkpoints.commit(state(6))
    assert not list(tmp_path.glob(".step=*")), "what is left of it would keep the disk full"
    found, warnings = checkpoints.latest()
    assert found is not None
    assert (found.state.step, warnings) == (4, [])
    save(checkpoints, state(6))
    assert steps(tmp_path) == [6]


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    folder = save(Checkpoints(tmp_path, keep=1), state(4))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["learner/model.safetensors", "state.json"]
