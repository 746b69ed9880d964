"""One Ray for all sides of a comparison: a head on this machine that commands join in turn.

Owns its start and end. It has more CPUs to give than there are cores, since most workers of a
comparison wait, and it tells its workers what Manta's own local Ray would.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from manta.orchestrator.local_ray import LOCAL_DEFAULTS

ROOT = Path(__file__).parent.parent
_STARTED = "Ray runtime started"
_START_SECONDS = 180.0
_END_SECONDS = 60.0


@contextmanager
def ray_head(cpus: int) -> Iterator[Mapping[str, str]]:
    """The environment in which a command's Ray is this one.

    Raises RuntimeError where the head does not start.
    """
    # A short path: Ray's sockets lie below it.
    session = Path("/tmp") / f"manta-benchmark-{os.getpid()}"
    session.mkdir()
    # Each port its own: another Ray on this machine may have taken the usual ones.
    port, agent = _free_port(), _free_port()
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = {
        **LOCAL_DEFAULTS,
        **kept,
        "RAY_AUTH_MODE": "disabled",
        "RAY_raylet_start_wait_time_s": f"{_START_SECONDS:g}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH", "")))),
    }
    log = session / "head.log"
    with log.open("w", encoding="utf-8") as output:
        head = subprocess.Popen(
            _command(cpus, port, agent, session),
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_started(head, log)
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        head.terminate()
        head.wait(_END_SECONDS)
        shutil.rmtree(session, ignore_errors=True)


def _command(cpus: int, port: int, agent: int, session: Path) -> list[str]:
    code = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    return [
        *(sys.executable, "-c", code, "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={session}"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--num-cpus={cpus}"),
        f"--dashboard-agent-listen-port={agent}",
    ]


def _wait_until_started(head: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while _STARTED not in log.read_text(encoding="utf-8"):
        if head.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"no Ray head: {log.read_text(encoding='utf-8')[-4000:]}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
