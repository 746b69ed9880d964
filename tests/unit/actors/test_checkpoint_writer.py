"""A rank's files on their way to disk while it trains on."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from manta.actors.checkpoint_writer import CheckpointWriter
from manta.actors.step_work import Saved


class Told:
    """What the mailbox hears."""

    def __init__(self) -> None:
        self.words: list[tuple[int, Saved]] = []

    def __call__(self, step: int, saved: Saved) -> None:
        self.words.append((step, saved))


def test_it_writes_beside_its_caller_and_tells_what_is_there(tmp_path: Path) -> None:
    told, go = Told(), threading.Event()

    def write(folder: Path) -> None:
        go.wait(20)
        (folder / "model.safetensors").write_text("weights")

    writer = CheckpointWriter(told)
    writer.start(4, str(tmp_path / "learner"), lambda: write)
    assert told.words == []
    assert list(tmp_path.rglob("*.safetensors")) == []
    go.set()
    writer.wait()
    [(step, saved)] = told.words
    [file] = saved.files
    assert (step, saved.problem, file.name, file.num_bytes) == (4, "", "model.safetensors", 7)
    assert file.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert [path.name for path in (tmp_path / "learner").iterdir()] == ["model.safetensors"]


def test_a_second_write_waits_for_the_first(tmp_path: Path) -> None:
    told, go, order = Told(), threading.Event(), list[str]()

    def slow(folder: Path) -> None:
        go.wait(20)
        order.append("slow")

    def second_write(folder: Path) -> None:
        order.append("second")

    writer = CheckpointWriter(told)
    writer.start(4, str(tmp_path), lambda: slow)
    second = threading.Thread(target=writer.start, args=(5, str(tmp_path), lambda: second_write))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    go.set()
    second.join(20)
    writer.wait()
    assert order == ["slow", "second"]
    assert [step for step, _ in told.words] == [4, 5]


def test_a_full_disk_is_told_and_another_failure_raised_too(tmp_path: Path) -> None:
    told = Told()

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    def broken(folder: Path) -> None:
        raise RuntimeError("a bug")

    writer = CheckpointWriter(told)
    writer.start(4, str(tmp_path / "learner"), lambda: full)
    writer.wait()
    assert told.words == [(4, Saved((), "[Errno 28] No space left on device"))]
    assert list((tmp_path / "learner").iterdir()) == []
    writer.start(5, str(tmp_path / "learner"), lambda: broken)
    with pytest.raises(RuntimeError, match="a bug"):
        writer.wait()
    step, saved = told.words[1]
    assert step == 5
    assert "could not write its part" in saved.problem


def test_a_rank_without_a_part_says_so() -> None:
    told = Told()
    CheckpointWriter(told).nothing(4)
    assert told.words == [(4, Saved(()))]


def test_what_cannot_be_written_beside_is_written_here(tmp_path: Path) -> None:
    told, threads = Told(), list[threading.Thread]()
    writer = CheckpointWriter(told)
    writer.now(4, str(tmp_path), lambda folder: threads.append(threading.current_thread()))
    assert told.words == [(4, Saved(()))]
    assert threads == [threading.current_thread()]
