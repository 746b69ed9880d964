"""Files that are not as a command needs them: exit code 2 and one line, before anything starts."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from manta.orchestrator.cli import main
from manta.orchestrator.file_trouble import file_trouble
from manta.orchestrator.lives import Lives
from manta.orchestrator.run_directory import RunDirectory
from tests.unit.orchestrator.tiny_run import load, write


def test_what_is_said_of_a_file_and_what_is_none() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert file_trouble(full) == ("No space left on device: make room there, or name another place")
    refused = PermissionError(errno.EACCES, "Permission denied", "/runs/demo")
    assert file_trouble(refused) == (
        "/runs/demo: Permission denied: name a place that this user may use, or change who may"
    )
    assert file_trouble(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) is None
    assert file_trouble(OSError("of somebody's own")) is None


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that cannot work says, which is one line."""
    assert main(words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line.removeprefix(f"manta {words[0]}: ")


def test_run_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_bytes(b"run: {name: \xff}\n")
    assert told(capsys, "check", str(wrong)) == f"{wrong}: is not UTF-8 text: invalid start byte"
    below = wrong / "run.yaml"
    assert told(capsys, "train", str(below)) == f"{below}: cannot be read: Not a directory"
    found = told(capsys, "submit", str(tmp_path))
    assert found == f"{tmp_path}: cannot be read: Is a directory"
    found = told(capsys, "check", write(tmp_path), "rollout.workers=[1")
    assert found.startswith("override 'rollout.workers=[1': not valid YAML")
    found = told(capsys, "doctor", str(wrong))
    assert found == f"{wrong} is no folder: name the directory of a run (run.dir/run.name)"


def test_run_directories_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a" * 300
    found = told(capsys, "train", write(tmp_path), f"run.dir={tmp_path}", f"run.name={name}")
    assert found.startswith(f"{tmp_path}/{name}") and "File name too long: is the path" in found

    place = f"run.dir={tmp_path}"
    directory = RunDirectory(tmp_path / "tiny")
    directory.create()
    Lives(directory).save(load(tmp_path, place))
    for text in (b"{", b"{}", b"[]", b"\xff"):
        directory.summary.write_bytes(text)
        found = told(capsys, "train", write(tmp_path), place)
        assert found.startswith(f"{directory.summary} is no summary of a run (")
        assert found.endswith("remove it to go on with the run")
