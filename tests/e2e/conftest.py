"""One Ray head for the tests that need not start a Ray of their own, as on a real cluster: it
speaks TLS."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from tests.e2e import runs
from tests.tls import certificates


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a deterministic run from start to end without interruption, for reading."""
    folder = tmp_path_factory.mktemp("finished")
    result = runs.manta("train", runs.TINY, folder, "run.deterministic=true")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "tiny"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runs.Environment]:
    """The environment in which commands reach a running head, on localhost."""
    # Each port its own: another Ray on this machine may have taken the usual ones.
    gcs, jobs, agent = free_port(), free_port(), free_port()
    # A short path: Ray's sockets lie below it.
    session = Path("/tmp") / f"manta-{os.getpid()}"
    # Ray knows this machine by another address than localhost
    here = ("127.0.0.1", ray.util.get_node_ip_address())
    environment = {
        **runs.environment(),
        **certificates(tmp_path_factory.mktemp("tls") / "node", here),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1",
        f"--port={gcs}", f"--dashboard-port={jobs}", f"--temp-dir={session}",
        f"--dashboard-agent-listen-port={agent}",
        "--disable-usage-stats",
    ]  # fmt: skip
    with (tmp_path_factory.mktemp("head") / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until_it_answers(f"http://127.0.0.1:{jobs}/api/version")
            yield {
                **environment,
                "RAY_ADDRESS": f"127.0.0.1:{gcs}",
                "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{jobs}",
                "SESSION_OF_TESTS": str(session),
            }
        finally:
            # Ray's own way down waits half a minute for processes that have nothing left to do
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait(60)
            shutil.rmtree(session, ignore_errors=True)
