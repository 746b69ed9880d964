from __future__ import annotations

from pathlib import Path

import pytest

from manta.actors.stored_folder import StoredFolder
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.no_room import with_advice


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(StoredFolder.at(str(folder)), keep=1)


def test_a_full_disk_is_told_with_what_is_kept(tmp_path: Path) -> None:
    error = "LearnerFailed: OSError: [Errno 28] No space left on device: 'rank=0.jsonl'"
    told = with_advice(error, Path("/runs/a"), checkpoints(tmp_path))
    assert told.startswith(error)
    assert "make room, then start the run again. It goes on from the beginning" in told
    (tmp_path / "step=000007").mkdir()
    assert "the checkpoint of step 7" in with_advice(error, tmp_path, checkpoints(tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        "NoEngineLeft: none",
        "CheckpointFailed: No space left on device. Make room, then start the run again",
    ],
)
def test_what_needs_no_advice_is_left_alone(tmp_path: Path, error: str) -> None:
    assert with_advice(error, tmp_path, checkpoints(tmp_path)) == error
