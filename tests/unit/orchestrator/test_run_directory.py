from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from manta.orchestrator.run_directory import RunDirectory, atomic_write

HOLD = """
import sys
from pathlib import Path
from manta.orchestrator.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_creation_keeps_what_is_there_and_names_a_file_in_the_way(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs" / "addition")
    directory.create()
    directory.metrics.write_text("{}\n")
    directory.create()
    assert directory.metrics.read_text() == "{}\n"
    assert directory.checkpoints.is_dir()
    with pytest.raises(ValueError, match=r"metrics\.jsonl is a file where the run directory"):
        RunDirectory(directory.metrics).create()


def test_a_directory_that_cannot_be_made_or_written_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"directory .*a \(run\.dir, run\.name\) cannot be made"):
        RunDirectory(tmp_path / ("a" * 300)).create()
    directory = RunDirectory(tmp_path)
    directory.create()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a full disk does, the file is made and takes no bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with (
            pytest.raises(ValueError, match="cannot be written: File too large: make room there"),
            directory.lock(),
        ):
            raise AssertionError("nobody knows who holds it")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with directory.lock():
        pass
    directory.checkpoint_location.mkdir()
    with pytest.raises(ValueError, match=r"its checkpoints is not known: .*: Is a dir"):
        directory.checkpoints_at()


def test_a_second_driver_is_refused_until_the_first_one_dies(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None and first.stdin is not None
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"in use by process {first.pid} on "),
            directory.lock(),
        ):
            raise AssertionError("two drivers hold one run directory")
    finally:
        first.kill()
        first.communicate()
    with directory.lock():
        assert str(os.getpid()) in directory.lock_file.read_text()
    with directory.lock():
        assert directory.lock_file.exists()


def test_an_atomic_write_replaces_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    atomic_write(path, "old")
    atomic_write(path, "new")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "half \ud800")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_resume_forgets_the_trajectories_of_later_steps(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for step in (2, 10, 11):
        directory.step_trajectories(step).mkdir(parents=True)
    (directory.trajectories / "notes").mkdir()
    directory.discard_trajectories_after(10)
    left = {path.name for path in directory.trajectories.iterdir()}
    assert left == {"step=2", "step=10", "notes"}
