"""Checkpoints on storage that goes away: none is visible that is not whole, none is taken for
damaged because nobody answered, and the run says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.actors import stored_folder
from manta.actors.stored_folder import StoredFolder, WrittenFile
from manta.orchestrator.checkpoint import (
    CheckpointFailed,
    Checkpoints,
    NotRemoved,
    Unreachable,
)
from manta.orchestrator.run_state import RunState
from tests.fragile_files import FragileFiles, Request

TRIES = 3


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_folder, "_PAUSE_SECONDS", 0.0)


def state(step: int) -> RunState:
    return RunState(step, "rl", step, False, None, 0, 0, 0)


def bring(place: StoredFolder, step: int) -> tuple[WrittenFile, ...]:
    """A rank's part."""
    learner = place.under(f"step={step:06d}").under("learner")
    return learner.fill(lambda folder: (folder / "model.safetensors").write_text("w" * 64) and None)


def save(checkpoints: Checkpoints, place: StoredFolder, step: int) -> None:
    checkpoints.begin(step)
    checkpoints.commit(state(step), bring(place, step))


def newest(place: StoredFolder) -> tuple[int, list[str]]:
    found, warnings = Checkpoints(place, keep=2).latest()
    assert found is not None
    return found.state.step, warnings


@pytest.fixture
def files(tmp_path: Path) -> FragileFiles:
    return FragileFiles(tmp_path)


@pytest.fixture
def place(files: FragileFiles) -> StoredFolder:
    return files.folder("bucket")


def test_an_upload_that_breaks_off_is_made_again_from_its_start(
    files: FragileFiles, place: StoredFolder
) -> None:
    checkpoints = Checkpoints(place, keep=2)
    checkpoints.begin(4)
    files.breaks["upload"] = TRIES - 1
    [written] = bring(place, 4)
    assert files.sent == ["bucket/step=000004/learner/model.safetensors"] * TRIES
    assert written.num_bytes == 64
    checkpoints.commit(state(4), [written])
    assert newest(place) == (4, [])


def test_a_rank_s_upload_that_never_ends_leaves_no_checkpoint(
    files: FragileFiles, place: StoredFolder, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(place, keep=2)
    save(checkpoints, place, 4)
    checkpoints.begin(6)
    files.breaks["upload"] = TRIES
    with pytest.raises(OSError, match="connection reset by peer") as broken:
        bring(place, 6)
    half = tmp_path / "bucket/step=000006/learner/model.safetensors"
    assert half.stat().st_size == 32
    assert newest(place) == (4, []), "what is not finished is no checkpoint, and no damaged one"
    with pytest.raises(CheckpointFailed, match=r"step 6 could not .*connection reset by peer"):
        checkpoints.fail(6, [str(broken.value)])
    assert not half.exists()


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_commit_that_breaks_off_leaves_the_checkpoint_before(
    files: FragileFiles, place: StoredFolder, name: str
) -> None:
    checkpoints = Checkpoints(place, keep=2)
    save(checkpoints, place, 4)
    checkpoints.begin(6)
    written = bring(place, 6)
    files.breaks["upload"], files.ending = TRIES, name
    with pytest.raises(CheckpointFailed, match=r"step 6 could not .*connection reset by peer"):
        checkpoints.commit(state(6), written)
    assert files.sent[-TRIES:] == [f"bucket/step=000006/{name}"] * TRIES
    assert newest(place) == (4, [])
    save(checkpoints, place, 6)
    assert newest(place) == (6, [])


@pytest.mark.parametrize(
    ("request_", "ending"),
    [("look", "bucket"), ("look", ".safetensors"), ("read", "manifest.json"), ("read", "tensors")],
)
def test_storage_that_does_not_answer_is_no_damage_and_no_older_one_is_taken(
    files: FragileFiles, place: StoredFolder, request_: Request, ending: str
) -> None:
    for step in (4, 6):
        save(Checkpoints(place, keep=2), place, step)
    files.breaks[request_], files.ending = 1, ending
    with pytest.raises(Unreachable, match=r"cannot be looked at: .*no route to host.*Start the"):
        newest(place)
    assert newest(place) == (6, [])


def test_what_cannot_be_removed_goes_with_the_next_commit(
    files: FragileFiles, place: StoredFolder
) -> None:
    checkpoints = Checkpoints(place, keep=1)
    save(checkpoints, place, 4)
    files.breaks["removal"] = 1
    with pytest.raises(NotRemoved, match="no route to host"):
        save(checkpoints, place, 6)
    assert newest(place) == (6, [])
    assert checkpoints.steps() == [4, 6]
    save(checkpoints, place, 8)
    assert checkpoints.steps() == [8]
