"""What is left of a life: its processes end, or the run does, and says what stays."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manta.orchestrator.past_life import await_end


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process under the name of a worker of Ray, that was stopped."""
    process = subprocess.Popen(["ray::Rank", "60"], executable="/bin/sleep")
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.001)  # its arguments are there a moment after it is
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait(10)


def test_a_stopped_worker_is_killed(worker: subprocess.Popen[bytes]) -> None:
    await_end([worker.pid, os.getpid()], 0.0)
    assert worker.wait(10) == -signal.SIGKILL


def test_one_that_has_gone_meanwhile_is_none(worker: subprocess.Popen[bytes]) -> None:
    def kill(pid: int) -> None:
        worker.kill()
        worker.wait(10)
        os.kill(pid, signal.SIGKILL)

    await_end([worker.pid], 0.0, kill)
    assert worker.returncode == -signal.SIGKILL


def test_one_that_cannot_be_killed_is_told(worker: subprocess.Popen[bytes]) -> None:
    """As in a read from a disk that does not answer: state D."""
    told = rf"0\.1 s after they were killed: ray::Rank \(process {worker.pid}\)\. .*file system"
    with pytest.raises(TimeoutError, match=told):
        await_end([worker.pid], 0.0, lambda pid: None, 0.1)
