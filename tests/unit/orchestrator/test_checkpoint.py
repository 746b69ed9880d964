"""Checkpoints: what is visible is whole, whatever happened while it was written.

Most tests run on this machine's file system, where an unfinished checkpoint has another name, and
on one that cannot rename a folder, like object storage.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.fs as fs
import pytest

from manta.actors import stored_folder
from manta.actors.stored_folder import StoredFolder, WrittenFile
from manta.envs.records import GroupId
from manta.orchestrator.checkpoint import Checkpoint, CheckpointFailed, Checkpoints
from manta.orchestrator.curriculum import CurriculumState, KeptOrder
from manta.orchestrator.feed import FeedState
from manta.orchestrator.kept_checkpoints import kept
from manta.orchestrator.manifest import OtherFormat
from manta.orchestrator.run_state import RunState

SHARD = "learner/model.safetensors"
FEED = FeedState(2, 17, (GroupId(1, 5, 2), GroupId(2, 16, 0)))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_folder, "_PAUSE_SECONDS", 0.0)


@pytest.fixture(params=["local", "elsewhere"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoredFolder:
    """Where the files of either kind lie in `tmp_path`."""
    return StoredFolder.at(str(tmp_path)) if request.param == "local" else elsewhere(tmp_path)


def elsewhere(folder: Path) -> StoredFolder:
    """`folder` as pyarrow shows object storage: not as this machine's file system."""
    parent = fs.SubTreeFileSystem(str(folder.parent), fs.LocalFileSystem())
    return StoredFolder(f"store://{folder.name}", parent, folder.name)


def state(
    step: int, stage: str = "rl", ends_stage: bool = False, score: float | None = None
) -> RunState:
    return RunState(
        step=step,
        stage=stage,
        stage_step=step - 3,
        ends_stage=ends_stage,
        feed=FEED,
        ledger_position=100 * step,
        metrics_position=10 * step,
        incarnation=1,
        score=score,
    )


def opened(place: StoredFolder, keep: int = 1, keep_best: int = 0) -> Checkpoints:
    return Checkpoints(place, keep, keep_best)


def written(place: StoredFolder, step: int, text: str) -> tuple[WrittenFile, ...]:
    """What a rank brings to the unfinished checkpoint of `step`."""
    hidden = "." if place.local is not None else ""
    learner = place.under(f"{hidden}step={step:06d}").under("learner")
    return learner.fill(lambda folder: (folder / "model.safetensors").write_text(text) and None)


def save(
    checkpoints: Checkpoints, place: StoredFolder, saved: RunState, learner: str | None = "weights"
) -> Path:
    """Where the files of the checkpoint lie."""
    checkpoints.begin(saved.step)
    files = () if learner is None else written(place, saved.step, f"{learner} {saved.step}")
    return folder_of(checkpoints.commit(saved, files))


def folder_of(checkpoint: Checkpoint) -> Path:
    files = checkpoint.folder.files
    root = files.base_path if isinstance(files, fs.SubTreeFileSystem) else ""
    return Path(root) / checkpoint.folder.path


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step=")) for path in folder.glob("step=*"))


def newest(checkpoints: Checkpoints) -> int | None:
    found, _ = checkpoints.latest()
    return None if found is None else found.state.step


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@contextmanager
def files_no_longer_than(num_bytes: int) -> Iterator[None]:
    """A disk that is full once a file has `num_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


CURRICULUM = CurriculumState(3, "a", "b", "c", "d", (KeptOrder(1, 2, "e"), KeptOrder(2, 3, "f")))


@pytest.mark.parametrize(
    "feed", [FEED, replace(FEED, median_length=17.5), replace(FEED, curriculum=CURRICULUM), None]
)
def test_what_was_saved_comes_back(place: StoredFolder, feed: FeedState | None) -> None:
    saved = replace(state(7, score=0.5), feed=feed)
    save(opened(place, 2), place, saved)
    found, warnings = opened(place, 2).latest()
    assert found is not None
    assert found.state == saved
    assert warnings == []
    assert found.learner is not None
    with found.learner.here() as folder:
        assert (folder / "model.safetensors").read_text() == "weights 7"


def test_a_new_run_has_none(place: StoredFolder) -> None:
    checkpoints = opened(place.under("new"))
    assert checkpoints.latest() == (None, [])
    assert checkpoints.newest_learner(100) is None
    assert checkpoints.stage_end("rl") is None
    assert checkpoints.steps() == []


def test_a_stage_that_only_samples_has_no_learner(place: StoredFolder) -> None:
    checkpoints = opened(place, 3)
    save(checkpoints, place, state(4))
    save(checkpoints, place, state(5), learner=None)
    found, _ = checkpoints.latest()
    assert found is not None and found.learner is None
    assert checkpoints.newest_learner(5) == place.under("step=000004").under("learner")
    assert checkpoints.newest_learner(3) is None


def test_a_crash_before_the_manifest_leaves_the_old_one(
    place: StoredFolder, tmp_path: Path
) -> None:
    checkpoints = opened(place, 2)
    save(checkpoints, place, state(4))
    checkpoints.begin(5)
    written(place, 5, "whole, but not committed")
    later = opened(place, 2)
    found, warnings = later.latest()
    assert found is not None
    assert (found.state.step, warnings) == (4, [])
    save(later, place, state(6))
    assert not list(tmp_path.glob(".step=*"))
    assert steps(tmp_path) == [4, 6]


def test_it_appears_at_once(tmp_path: Path) -> None:
    checkpoints = opened(StoredFolder.at(str(tmp_path)))
    partial = Path(checkpoints.begin(4)).parent
    assert steps(tmp_path) == []
    inode = partial.stat().st_ino
    final = folder_of(checkpoints.commit(state(4), ()))
    assert final.stat().st_ino == inode, "renamed, not copied"


def test_beginning_again_clears_what_a_crash_left(place: StoredFolder) -> None:
    checkpoints = opened(place, 2)
    checkpoints.begin(5)
    written(place, 5, "of another life")
    checkpoints.begin(5)
    folder = folder_of(checkpoints.commit(state(5), ()))
    assert [path.name for path in folder.rglob("*.safetensors")] == []


def test_what_is_not_as_its_rank_wrote_it_is_never_committed(place: StoredFolder) -> None:
    checkpoints = opened(place, 2)
    save(checkpoints, place, state(4))
    for damage in (b"longer than it was", b"", None):
        checkpoints.begin(6)
        [file] = written(place, 6, "weights 6")
        hidden = place.under("step=000006" if place.local is None else ".step=000006")
        if damage is None:
            hidden.under("learner").remove_file(file.name)
        else:
            with place.files.open_output_stream(f"{hidden.path}/learner/{file.name}") as stream:
                stream.write(damage)
        with pytest.raises(CheckpointFailed, match="does not hold the 9 bytes that its rank wrote"):
            checkpoints.commit(state(6), [file])
        assert newest(opened(place)) == 4


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / SHARD).write_text("weights 9"), f"{SHARD} holds other bytes than were"),
        (lambda f: flip_a_bit(f / SHARD), f"{SHARD} holds other bytes than were written (SHA-256)"),
        (lambda f: (f / SHARD).write_text("weig"), f"{SHARD} has 4 bytes, 9 were written"),
        (lambda f: (f / SHARD).unlink(), f"{SHARD} is missing"),
        (lambda f: (f / "state.json").write_text("{}"), "state.json has 2 bytes"),
        (lambda f: (f / "state.json").unlink(), "state.json is missing"),
        (lambda f: (f / "manifest.json").write_text(""), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text('{"format": 2, "fil'), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text('{"format": 2}'), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text("[]"), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text('{"format": 2, "files": {}}'), "state.json"),
    ],
)
def test_a_damaged_one_is_passed_over_by_name(place: StoredFolder, damage, told: str) -> None:
    checkpoints = opened(place, 3)
    save(checkpoints, place, state(4))
    damage(save(checkpoints, place, state(8)))
    found, [warning] = checkpoints.latest()
    assert found is not None and found.state.step == 4
    assert "step=000008" in warning
    assert told in warning
    assert checkpoints.newest_learner(4) == place.under("step=000004").under("learner")
    with pytest.raises(ValueError, match="step=000008"):
        checkpoints.newest_learner(8)


def test_one_without_manifest_is_damaged_where_it_could_only_come_whole(
    place: StoredFolder,
) -> None:
    """A renamed folder once had it. Elsewhere nobody ever saw the checkpoint."""
    checkpoints = opened(place, 3)
    save(checkpoints, place, state(4))
    (save(checkpoints, place, state(8)) / "manifest.json").unlink()
    found, warnings = checkpoints.latest()
    assert found is not None and found.state.step == 4
    told = ["step=000008 has no readable manifest.json"] if place.local is not None else []
    assert [warning.partition(":")[0].rpartition("/")[2] for warning in warnings] == told


def test_where_none_is_whole_the_run_does_not_begin_from_its_start(place: StoredFolder) -> None:
    checkpoints = opened(place, 3)
    for step in (4, 8):
        flip_a_bit(save(checkpoints, place, state(step)) / SHARD)
    with pytest.raises(ValueError, match=r"none of the .* is whole:\n.*=000008: .*\n.*=000004: "):
        checkpoints.latest()


@pytest.mark.parametrize(("number", "told"), [(3, "a newer version"), (1, "another version")])
def test_of_another_format_none_is_taken_and_no_older_one_in_its_place(
    place: StoredFolder, number: int, told: str
) -> None:
    checkpoints = opened(place, 3)
    save(checkpoints, place, state(4))
    manifest = save(checkpoints, place, state(8)) / "manifest.json"
    manifest.write_text(json.dumps({"format": number, "shape": "that nobody knows here"}))
    with pytest.raises(OtherFormat, match=f"step=000008 has format {number}, .* reads 2: {told}"):
        checkpoints.latest()
    assert checkpoints.at_step(4).state.step == 4


def test_what_is_held_stays_until_it_is_released(place: StoredFolder, tmp_path: Path) -> None:
    """A learner group reads step 4 while the next checkpoint is committed."""
    checkpoints = opened(place, 1)
    save(checkpoints, place, state(4))
    checkpoints.hold()
    found, _ = checkpoints.latest()
    save(checkpoints, place, state(6))
    assert found is not None and found.learner is not None
    with found.learner.here() as folder:
        assert (folder / "model.safetensors").read_text() == "weights 4"
    assert steps(tmp_path) == [4, 6]
    checkpoints.release()
    save(checkpoints, place, state(8))
    assert steps(tmp_path) == [8]


def test_those_that_a_run_goes_back_from_are_none_and_stay_until_their_steps_come(
    place: StoredFolder, tmp_path: Path
) -> None:
    checkpoints = opened(place, 2)
    for step in (2, 4, 6, 8):
        save(opened(place, 9), place, state(step, ends_stage=step == 6))
    assert checkpoints.leave_after(4) == [8, 6]
    later = opened(place, 2)
    assert (newest(later), later.steps(), later.stage_end("rl")) == (4, [2, 4], None)
    assert steps(tmp_path) == [2, 4, 6, 8]
    assert (tmp_path / "step=000008" / SHARD).read_text() == "weights 8"
    save(later, place, state(5))
    assert steps(tmp_path) == [4, 5, 6, 8]
    save(later, place, state(6), learner="other weights")
    save(later, place, state(7))
    assert steps(tmp_path) == [6, 7, 8]
    assert (tmp_path / "step=000006" / SHARD).read_text() == "other weights 6"
    save(later, place, state(9))
    assert steps(tmp_path) == [7, 9]
    assert not list(tmp_path.glob(".*"))


def test_only_the_last_are_kept_but_every_stage_end_is(place: StoredFolder, tmp_path: Path) -> None:
    checkpoints = opened(place, 2)
    for step in range(1, 9):
        save(checkpoints, place, state(step, ends_stage=step in (2, 5)))
    assert steps(tmp_path) == [2, 5, 7, 8]
    assert not list(tmp_path.glob(".*"))


def test_more_than_a_million_steps_stay_in_order(place: StoredFolder, tmp_path: Path) -> None:
    checkpoints = opened(place, 2)
    for step in (999_998, 999_999, 1_000_000):
        save(checkpoints, place, state(step))
    found, _ = checkpoints.latest()
    assert found is not None and found.state.step == 1_000_000
    assert steps(tmp_path) == [999_999, 1_000_000]


def test_what_lies_beyond_a_damaged_one_never_costs_the_new_one(
    place: StoredFolder, tmp_path: Path
) -> None:
    """A run that went back to step 2 keeps what it saves, although damaged ones have higher
    numbers; they are replaced as it comes to their steps."""
    checkpoints = opened(place, 1)
    save(checkpoints, place, state(2, ends_stage=True))
    for step in (4, 6, 8):
        folder = save(opened(place, 9), place, state(step))
        (folder / "manifest.json").write_text("torn")
    (tmp_path / "step=000008" / "state.json").write_text("torn")
    save(checkpoints, place, state(4))
    found, warnings = checkpoints.latest()
    assert found is not None and found.state.step == 4
    assert len(warnings) == 2
    save(checkpoints, place, state(6))
    save(checkpoints, place, state(8))
    found, warnings = checkpoints.latest()
    assert found is not None
    assert (found.state.step, warnings) == (8, [])
    assert steps(tmp_path) == [2, 8]


def test_the_product_of_a_stage_is_its_newest_end(place: StoredFolder, tmp_path: Path) -> None:
    checkpoints = opened(place, 1)
    save(checkpoints, place, state(3, "warm", ends_stage=True))
    save(checkpoints, place, state(5, "rl", ends_stage=True))
    save(checkpoints, place, state(7, "rl", ends_stage=True))  # its steps were raised
    save(checkpoints, place, state(8, "later"))
    for stage, step in (("warm", 3), ("rl", 7)):
        end = checkpoints.stage_end(stage)
        assert end is not None and end.state.step == step
    assert checkpoints.stage_end("later") is None


def test_a_damaged_stage_end_is_never_taken_for_none(place: StoredFolder, tmp_path: Path) -> None:
    checkpoints = opened(place, 1)
    folder = save(checkpoints, place, state(3, "warm", ends_stage=True))
    save(checkpoints, place, state(5))
    (tmp_path / "step=000005" / "manifest.json").write_text("")  # another one: no matter
    assert checkpoints.stage_end("warm") is not None
    (folder / "learner" / "model.safetensors").write_text("other")
    with pytest.raises(ValueError, match=r"model\.safetensors has 5 bytes, 9 were written"):
        checkpoints.stage_end("warm")
    (folder / "state.json").write_text("torn")
    with pytest.raises(ValueError, match=r"step=000003 has no readable state\.json"):
        checkpoints.stage_end("warm")


def test_a_full_disk_is_told_and_costs_no_older_one(place: StoredFolder, tmp_path: Path) -> None:
    checkpoints = opened(place, 1)
    save(checkpoints, place, state(4))
    checkpoints.begin(6)
    files = written(place, 6, "weights 6")
    with files_no_longer_than(64), pytest.raises(CheckpointFailed, match="step 6 could not be"):
        checkpoints.commit(state(6), files)
    assert not list(tmp_path.glob("*step=000006")), "what is left of it would keep the disk full"
    found, warnings = checkpoints.latest()
    assert found is not None
    assert (found.state.step, warnings) == (4, [])
    save(checkpoints, place, state(6))
    assert steps(tmp_path) == [6]


def test_the_manifest_names_every_file(place: StoredFolder, tmp_path: Path) -> None:
    folder = save(opened(place, 1), place, state(4))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["learner/model.safetensors", "state.json"]
    assert manifest["files"]["learner/model.safetensors"]["bytes"] == len("weights 4")


def test_what_ranks_could_not_write_ends_in_the_same_words(
    place: StoredFolder, tmp_path: Path
) -> None:
    checkpoints = opened(place)
    save(checkpoints, place, state(4))
    checkpoints.begin(6)
    written(place, 6, "of the other rank")
    with pytest.raises(CheckpointFailed, match=r"step 6 .* No space left.* Make room"):
        checkpoints.fail(6, ["[Errno 28] No space left on device"] * 2)
    assert not list(tmp_path.glob("*step=000006"))
    assert newest(checkpoints) == 4


def test_the_best_stay_beside_the_newest(place: StoredFolder, tmp_path: Path) -> None:
    checkpoints = opened(place, 1, keep_best=2)
    scores = {1: 0.2, 2: 0.9, 3: None, 4: 0.5, 5: 0.9, 6: 0.1}
    for step, score in scores.items():
        save(checkpoints, place, state(step, score=score))
    assert steps(tmp_path) == [2, 5, 6]


def test_nothing_goes_before_what_replaces_it_is_there(place: StoredFolder, tmp_path: Path) -> None:
    checkpoints = opened(place)
    save(checkpoints, place, state(4))
    checkpoints.begin(6)
    files = written(place, 6, "weights 6")
    assert newest(checkpoints) == 4
    checkpoints.commit(state(6), files)
    assert steps(tmp_path) == [6]


def test_of_equal_scores_the_newer_one_is_better_and_ends_stay_anyway() -> None:
    states = [state(1, score=0.5), state(2, score=0.5), state(3, ends_stage=True), state(4)]
    assert kept(states, keep=1, keep_best=1) == {2, 3, 4}
    assert kept(states, keep=1, keep_best=0) == {3, 4}
    assert kept(states, 1, 0, named={1, 3}) == {1, 3, 4}, "what is named is beside what is kept"
    ended = [state(1, score=0.5), state(2, ends_stage=True, score=0.9), state(3), state(4)]
    assert kept(ended, keep=1, keep_best=1) == {2, 4}, "the best is one that stays"


def test_a_writer_that_is_killed_leaves_the_checkpoint_before(
    place: StoredFolder, tmp_path: Path
) -> None:
    """kill -9 in the middle of a rank's write, beside the steps."""
    checkpoints = opened(place)
    save(checkpoints, place, state(4))
    checkpoints.begin(6)
    hidden = ".step=000006" if place.local is not None else "step=000006"
    learner = tmp_path / hidden / "learner"
    writer = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(learner)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "in the middle\n"
    writer.kill()
    writer.communicate()
    half = [path for path in learner.rglob("*") if path.is_file()]
    assert [path.read_text() for path in half] == ["half"]
    later = opened(place)
    found, warnings = later.latest()
    assert found is not None
    assert (found.state.step, warnings) == (4, [])
    save(later, place, state(6))
    assert steps(tmp_path) == [6]
    assert len(list(tmp_path.rglob("model.safetensors"))) == 1


STOPPED = """
import sys, time
from pathlib import Path
from manta.actors.checkpoint_writer import CheckpointWriter

def write(folder):
    (folder / "model.safetensors.partial").write_text("half")
    print("in the middle", flush=True)
    time.sleep(600)

CheckpointWriter(lambda step, saved: None).start(6, sys.argv[1], lambda: write)
"""


def test_what_a_killed_writer_left_is_in_no_checkpoint(tmp_path: Path) -> None:
    place = StoredFolder.at(str(tmp_path))
    checkpoints = opened(place)
    learner = Path(checkpoints.begin(4))
    (learner / ".unfinished-abc").mkdir()
    (learner / ".unfinished-abc" / "model.safetensors").write_text("half")
    checkpoints.commit(state(4), written(place, 4, "whole"))
    left = [path.name for path in (tmp_path / "step=000004" / "learner").iterdir()]
    assert left == ["model.safetensors"]
