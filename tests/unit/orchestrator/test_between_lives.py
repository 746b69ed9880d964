"""A run that ends between two lives: status and summary say so."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from manta.actors.processes import this_process
from manta.orchestrator import status
from manta.orchestrator.between_lives import end_between_lives
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.status import RayStatus, Status, WaitStatus

PLACE = RayStatus("127.0.0.1:6379", "session", "")


def test_status_and_summary_say_why_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory(tmp_path)
    waits = (WaitStatus("group 1 of 8", time.time(), 60.0),)
    status.write(
        directory.status,
        Status(0.0, "starting", "tiny", "rl", 4, 8, 6, 30.0, 1, this_process(), PLACE, waits),
    )
    directory.summary.write_text(
        json.dumps({"state": "failed", "error": "ranks are gone", "seconds": 30.0})
    )
    error = TimeoutError("actors of the life before\nstill run")
    assert end_between_lives(directory, error) == 1
    told = "actors of the life before still run"
    found = status.read(directory.status)
    assert (found.state, found.error, found.waits, found.step) == ("failed", told, (), 6)
    assert time.time() - found.written < 60
    assert json.loads(directory.summary.read_text()) == {
        "state": "failed",
        "error": told,
        "seconds": 30.0,
    }
    assert capsys.readouterr().err == f"manta train: the run could not begin anew: {told}\n"


def test_a_directory_that_cannot_be_written_hides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_between_lives(RunDirectory(tmp_path / "gone"), OSError("gone")) == 1
    assert "gone" in capsys.readouterr().err
