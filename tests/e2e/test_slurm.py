"""deploy/slurm.sh with stand-ins for Slurm's own commands and for the run: a real Ray head and a
second node on this machine, with a token; what a wrong token is told; the end by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import runs
from tests.e2e.heads import free_port

pytestmark = pytest.mark.e2e

COMMAND = ["deploy/slurm.sh", "tests/e2e/tiny.yaml"]
SRUN = '#!/bin/bash\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
SCONTROL = "#!/bin/bash\nprintf '%s\\n' localhost 127.0.0.1\n"
MANTA = """\
#!{python}
import os, signal, sys, time
sys.path.insert(0, "{root}")
if sys.argv[1] != "train":
    from manta.orchestrator.cli import main
    sys.exit(main(sys.argv[1:]))
folder = sys.argv[-1].partition("=")[2]
signal.signal(signal.SIGTERM, lambda *_: (open(folder + "/saved", "w").close(), sys.exit(0)))
print("trains", *sys.argv[2:3], os.environ["RAY_AUTH_MODE"])
open(folder + "/started", "w").close()
time.sleep(100)
"""


def stand_in(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def until(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not found():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def variables(folder: Path, own: Path, port: int) -> dict[str, str]:
    """What Slurm and the user set; `own` has the stand-ins, the dashboard is at `port`."""
    return {
        **{name: value for name, value in runs.environment().items() if "RAY_A" not in name},
        "PATH": f"{own}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_SUBMIT_DIR": str(runs.ROOT),
        "SLURM_CPUS_ON_NODE": "1", "LEARNER_NODES": "1",
        "MANTA_SLURM_FOLDER": str(folder),
        "MANTA_PORT": str(free_port()), "MANTA_DASHBOARD_PORT": str(port),
        "MANTA_AGENT_PORT": str(free_port()),
    }  # fmt: skip


def test_a_job_that_fails_leaves_its_logs_and_no_token(tmp_path: Path) -> None:
    own = tmp_path / "bin"
    stand_in(own, "srun", "#!/bin/bash\necho no room on this node\nexit 1\n")
    stand_in(own, "scontrol", SCONTROL)
    ended = subprocess.run(
        COMMAND, cwd=runs.ROOT, env=variables(tmp_path, own, free_port()), timeout=60,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    folder = tmp_path / "slurm-7"
    assert "Ray's head did not start on localhost:\nno room on this node\n" in ended.stderr
    assert f"stay in {folder}\n" in ended.stderr
    assert [path.name for path in folder.iterdir()] == ["ray-localhost.log"]


def test_slurm_script(tmp_path: Path) -> None:
    own, session = tmp_path / "bin", Path("/tmp") / f"manta-slurm-{os.getpid()}"
    stand_in(own, "srun", SRUN)
    stand_in(own, "scontrol", SCONTROL)
    stand_in(own, "manta", MANTA.format(python=sys.executable, root=runs.ROOT))
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = variables(tmp_path, own, port) | {"RAY_TMPDIR": str(session)}
    process = subprocess.Popen(
        [*COMMAND, f"run.dir={tmp_path}"], cwd=runs.ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        until((tmp_path / "started").exists, process)
        token = tmp_path / "slurm-7/token"
        assert token.stat().st_mode & 0o777 == 0o600
        listing = ["manta", "runs", "list", "--address", address]
        wrong = {**environment, "RAY_AUTH_TOKEN": "0" * 64}
        refused = subprocess.run(listing, env=wrong, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith(
            f"manta runs: the cluster at {address} asks for a token, and did not take this one"
        )
        right = {**environment, "RAY_AUTH_TOKEN_PATH": str(token)}
        listed = subprocess.run(listing, env=right, capture_output=True, text=True, check=True)
        assert "tiny-" in listed.stdout and "running" in listed.stdout
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed
    assert (tmp_path / "saved").exists()
    assert "trains tests/e2e/tiny.yaml token\n" in printed
    assert "SIGTERM (the time is up, or scancel): saving at the end of the step\n" in printed
    assert not (tmp_path / "slurm-7").exists()
