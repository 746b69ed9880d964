"""A close look at a real process: at work, stopped, gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from manta.actors.examination import examine, without_secrets
from manta.actors.processes import Known, end, figures, host_figures, this_process
from manta.actors.vitals import Identity

WORKER = """
import dataclasses, json, subprocess, sys, time
from manta.actors.vitals import introduce

def holds_on(identity):
    print(json.dumps(dataclasses.asdict(identity)), flush=True)
    while True:
        time.sleep(0.05)

child = subprocess.Popen(["sleep", "1000"])
print("made by hand, WANDB_API_KEY=abcdef", file=sys.stderr, flush=True)
holds_on(introduce("node"))
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Identity]:
    with (tmp_path / "worker.err").open("w") as log:
        command = [sys.executable, "-c", WORKER]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    fields = json.loads(process.stdout.readline())
    identity = Identity(**{**fields, "process": Known(**fields["process"])})
    yield identity
    end(identity.process)
    process.wait()
    process.stdout.close()


def children(process: Known) -> list[psutil.Process]:
    return list(psutil.Process(process.pid).children())


def test_a_process_at_work_shows_its_stacks_and_the_end_of_its_log(worker: Identity) -> None:
    (found,) = examine([worker])
    assert "in holds_on" in found.stacks
    assert found.state.startswith(("sleeping", "computing"))
    assert 0 <= found.cpu_share < 1
    assert found.log == "made by hand, WANDB_API_KEY=***"
    again = examine([worker])[0].stacks
    assert again.count("in holds_on") == 1, "the stacks of the first look came again"


def test_a_stopped_process_says_so_and_has_no_stacks(worker: Identity) -> None:
    os.kill(worker.process.pid, signal.SIGSTOP)
    wait_until_stopped(worker.process)
    (found,) = examine([worker])
    assert "SIGSTOP" in found.state
    assert found.stacks == ""


def test_a_process_is_stopped_where_one_that_it_started_is(worker: Identity) -> None:
    (child,) = children(worker.process)
    child.suspend()
    wait_until_stopped(worker.process)
    found = figures(worker.process)
    assert found is not None and f"its process {child.pid} is stopped" in found.state


def test_ending_takes_all_that_it_started_along_even_stopped(worker: Identity) -> None:
    (child,) = children(worker.process)
    child.suspend()
    os.kill(worker.process.pid, signal.SIGSTOP)
    assert end(worker.process)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert figures(worker.process) is None
    (found,) = examine([worker])
    assert (found.state, found.stacks) == ("", "")
    assert "made by hand" in found.log


def test_another_process_of_the_same_number_is_not_touched() -> None:
    own = this_process()
    other = Known(own.host, own.pid, own.born - 60)
    assert figures(other) is None
    assert end(other), "it is gone already"
    assert figures(own) is not None


def test_a_machine_tells_of_memory_and_disk(tmp_path: Path) -> None:
    found = host_figures(tmp_path)
    assert 0 < found.memory_share < 1
    assert 0 < found.disk_share <= 1
    assert found.disk_free > 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("token: abc", "token: ***"),
        ('{"api_key": "abc"}', '{"api_key": ***'),
        ("AWS_SECRET_ACCESS_KEY=abc next", "AWS_SECRET_ACCESS_KEY=*** next"),
        ("made 12 tokens a second", "made 12 tokens a second"),
    ],
)
def test_secrets_are_blackened(line: str, told: str) -> None:
    assert without_secrets(line) == told


def wait_until_stopped(process: Known) -> None:
    deadline = time.monotonic() + 10
    while not ((found := figures(process)) and found.is_stopped):
        assert time.monotonic() < deadline
        time.sleep(0.01)
