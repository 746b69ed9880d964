from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from manta.orchestrator import controller_signs
from manta.orchestrator.controller_signs import ControllerSigns
from manta.orchestrator.job_actors import CONTROLLER, RANK, JobActor


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


async def test_a_controller_is_heard_of_while_its_process_lives(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def living(job: object) -> list[JobActor]:
        asked.append(job)
        return [
            JobActor(CONTROLLER, sleeper.pid, "node"),
            JobActor(RANK, os.getpid(), "node"),
            JobActor(CONTROLLER, 0, "node"),
        ]

    monkeypatch.setattr(controller_signs, "living", living)
    monkeypatch.setattr(controller_signs, "this_job", lambda: "job")
    signs = ControllerSigns(lambda: True)
    [(identity, sign)] = await signs.heard()
    assert (identity.process.pid, identity.node) == (sleeper.pid, "node")
    assert not sign.process.is_stopped
    sleeper.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not (await signs.heard())[0][1].process.is_stopped:
        assert time.monotonic() < deadline
    assert asked == ["job"]
    sleeper.kill()
    sleeper.wait()
    assert await signs.heard() == []
    assert await ControllerSigns(lambda: False).heard() == []
    assert asked == ["job"]
