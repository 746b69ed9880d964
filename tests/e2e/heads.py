"""Heads of Ray clusters on localhost, on ports and in a folder of their own."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.e2e import runs

_NUMBERS = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def head(
    log: Path,
    gcs: int,
    options: Sequence[str] = (),
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[runs.Environment]:
    """A head of 4 CPUs whose control store has the port `gcs`; the environment in which commands
    reach it. It is started with more `options`, and environment `variables`."""
    # Each port its own: another Ray on this machine may have taken the usual ones.
    jobs, agent = free_port(), free_port()
    # A short path: Ray's sockets lie below it.
    session = Path("/tmp") / f"manta-{os.getpid()}-{next(_NUMBERS)}"
    environment = {
        **runs.environment(),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1",
        f"--port={gcs}", f"--dashboard-port={jobs}", f"--temp-dir={session}",
        f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", *options,
    ]  # fmt: skip
    with log.open("w") as file:
        own = {**environment, **variables}
        process = subprocess.Popen(command, env=own, stdout=file, stderr=file)
        try:
            _wait_until_it_answers(f"http://127.0.0.1:{jobs}/api/version")
            yield {
                **environment,
                "RAY_ADDRESS": f"127.0.0.1:{gcs}",
                "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{jobs}",
                "SESSION_OF_TESTS": str(session),
                "PID_OF_HEAD": str(process.pid),
            }
        finally:
            # Ray's own way down waits half a minute for processes that have nothing left to do
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait(60)
            shutil.rmtree(session, ignore_errors=True)


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + runs.SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return  # who asks for a token is there
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
