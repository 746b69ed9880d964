"""The same run through `ray job submit` against a running Ray head."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + runs.SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head of its own, on localhost: its job address, and the environment that reaches it."""
    gcs, jobs = free_port(), free_port()
    # A short path: Ray's sockets lie below it.
    session = Path("/tmp") / f"manta-{os.getpid()}"
    environment = {
        **runs.environment(),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GOMP_SPINCOUNT": "2000",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1",
        f"--port={gcs}", f"--dashboard-port={jobs}", f"--temp-dir={session}",
        "--disable-usage-stats",
    ]  # fmt: skip
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until_it_answers(f"http://127.0.0.1:{jobs}/api/version")
            yield f"http://127.0.0.1:{jobs}", environment
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(session, ignore_errors=True)


def test_a_submitted_job_trains(tmp_path: Path, head: tuple[str, dict[str, str]]) -> None:
    address, environment = head
    submit = ["ray", "job", "submit", "--address", address, "--working-dir", "."]
    train = ["manta", "train", "tests/e2e/tiny.yaml", f"run.dir={tmp_path}"]
    result = subprocess.run(
        [*submit, "--", *train],
        cwd=runs.ROOT, env=environment, capture_output=True, text=True, timeout=runs.SECONDS,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "run finished" in result.stdout
    runs.check_history(tmp_path / "tiny", 12)
