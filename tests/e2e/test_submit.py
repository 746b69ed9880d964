"""A run through `manta submit` on a running Ray head: what is shown, what is not, and its stop."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e
SECRETS = {"HF_TOKEN": "hf-9f3c1b7e5d", "WANDB_API_KEY": "wandb-4e8a2d6c0b"}


def manta(cluster: runs.Environment, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    code = "import sys; from manta.orchestrator.cli import main; sys.exit(main(sys.argv[1:]))"
    address = ["--address", cluster["RAY_API_SERVER_ADDRESS"]]
    hidden = {name: value for name, value in cluster.items() if name != "RAY_API_SERVER_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *address],
        cwd=runs.ROOT, env=hidden, capture_output=True, text=True, timeout=runs.SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def jobs(cluster: runs.Environment) -> str:
    """All that Ray's own command shows of jobs."""
    done = subprocess.run(
        ["ray", "job", "list", "--log-style=record"],
        env=cluster, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def is_kept(cluster: runs.Environment, name: str) -> bool:
    url = f"{cluster['RAY_API_SERVER_ADDRESS']}/api/packages/gcs/{name}"
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return False


def test_a_submitted_run_shows_how_far_it_is_keeps_secrets_and_stops_when_it_has_saved(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    told, drivers = (
        hashlib.sha256(SECRETS[name].encode()).hexdigest() for name in ("HF_TOKEN", "WANDB_API_KEY")
    )
    component = (
        f"{{reward: 'tests.e2e.told:Told', name: HF_TOKEN, sha256: '{told}', "
        f"drivers: WANDB_API_KEY, drivers_sha256: '{drivers}'}}"
    )
    printed = manta(
        {**cluster, **SECRETS}, "submit", "tests/e2e/tiny.yaml", f"run.dir={tmp_path}",
        "run.name=sent", "stages.rl.steps=500", "checkpoint.every_steps=100",
        f"reward.components.told={component}", "--env", "HF_TOKEN",
    )  # fmt: skip
    assert "with the environment variables HF_TOKEN WANDB_API_KEY\n" in printed
    # Reward workers score, so they were told
    runs.wait_for_step(tmp_path / "sent", 6)
    listed = manta(cluster, "runs", "list").splitlines()
    id, status, stage, step = listed[1].split()[:4]
    assert (id.rpartition("-")[0], status, stage) == ("sent", "running", "rl")
    assert int(step.removesuffix("/500")) >= 2
    described = manta(cluster, "runs", "status", "sent")
    assert f"{id}: running, since " in described
    assert f"run directory: {tmp_path}/sent\nreward/mean: " in described
    assert "environment variables: HF_TOKEN WANDB_API_KEY\n" in described
    everything = jobs(cluster)
    assert "manta.actors.job_variables.take" in everything
    kept = everything.partition("'MANTA_JOB_VARIABLES': '")[2].partition("'")[0]
    assert is_kept(cluster, kept)

    stopped = manta(cluster, "runs", "stop", "sent")
    assert f"{id}: asked to stop (SIGTERM). It saves at the end of the step" in stopped
    assert stopped.endswith(f"{id}: stopped\n")
    summary = runs.summary(tmp_path / "sent")
    assert summary["state"] == "stopped"
    last = json.loads((tmp_path / "sent/metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (tmp_path / f"sent/checkpoints/step={last:06d}/manifest.json").exists()
    assert not is_kept(cluster, kept)

    logs = manta(cluster, "runs", "logs", id)
    assert "rl 1/500 | reward" in logs
    assert manta(cluster, "runs", "logs", "-f", id) == f"{logs}{id}: stopped\n"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    session = Path(cluster["SESSION_OF_TESTS"]) / "session_latest/logs"
    written += [path for path in session.rglob("*") if path.is_file()]
    assert len(written) > 50
    for secret in SECRETS.values():
        assert secret not in printed + described + everything + stopped + logs + jobs(cluster)
        assert not [path for path in written if secret.encode() in path.read_bytes()]


CLUSTER = """
cluster_name: some
provider: {type: local}
head_node_type: head
available_node_types:
  head: {resources: {CPU: 4}, node_config: {}, max_workers: 0}
  learner: {resources: {CPU: 100, GPU: 4, learner_node: 1}, node_config: {}, max_workers: 3}
"""


def test_what_an_autoscaler_may_start_counts_as_there(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER)
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.declared", str(file)],
        cwd=runs.ROOT, env=cluster, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "4 CPUs (4), 0 GPUs, []",
        "304 CPUs (4, 4, 100), 12 GPUs, ['learner_node']",
    ]
