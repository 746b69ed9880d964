"""A run on a cluster whose nodes come and go: by load, by a notice, and without one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.util.state import list_actors, list_nodes

from tests.e2e import runs
from tests.e2e.conftest import free_port

pytestmark = pytest.mark.e2e

# Each engine takes 2 CPUs: one fits beside the rest of the run on the head, others need nodes.
RUN = """
run: {name: elastic, seed: 0}
model:
  build: {layers: 1, width: 32, heads: 2, mlp_width: 64}
  tokenizer: "char:0123456789+="
  context: 40
env: {name: arithmetic, digits: 1, eval_size: 20}
reward: {formula: short, components: {short: {reward: length, target: 3, limit: 6}}}
stages:
  - {name: much, algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}}, steps: 36,
     prompts_per_step: 8, learning_rate: 1e-4}
  - {name: little, algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}}, steps: 1000,
     prompts_per_step: 1, learning_rate: 1e-4}
rollout:
  engine: simulated
  workers: {min: 1, max: 3, idle_seconds: 3}
  threads: 2
  max_rows: 8
  max_new_tokens: 24
  simulated: {tokens_per_second: 60, length_median: 1e9, length_sigma: 0}
publish: {probe_tolerance: 1000.0}
environment: {groups_per_call: 2}
checkpoint: {every_steps: 1000}
"""


class Nodes:
    """Nodes of 2 CPUs that join the session's head, as an autoscaler would have them join."""

    def __init__(self, cluster: runs.Environment) -> None:
        self._cluster = cluster
        self.alive: list[subprocess.Popen[bytes]] = []
        self._names = itertools.count()

    def add(self) -> None:
        """Returns once it has joined: nodes that start together take one another's sockets."""
        name = f"node-{next(self._names)}"
        # Each port its own, as for the head
        agent, metrics, runtime = free_port(), free_port(), free_port()
        command = [
            "ray", "start", f"--address={self._cluster['RAY_ADDRESS']}", "--num-cpus=2", "--block",
            "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime}",
            f"--node-name={name}",
            "--disable-usage-stats",
        ]  # fmt: skip
        self.alive.append(
            subprocess.Popen(
                command,
                env=self._cluster,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        deadline = time.monotonic() + 60
        while not self._found(name):
            assert time.monotonic() < deadline, f"{name} does not come up"
            time.sleep(0.1)

    def drain(self, number: int, seconds: int) -> None:
        """Gives the node of that number a notice, as a cloud does of its spot instances."""
        [node] = self._found(f"node-{number}")
        command = [
            "ray", "drain-node", f"--address={self._cluster['RAY_ADDRESS']}",
            f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=a notice", f"--deadline-remaining-seconds={seconds}",
        ]  # fmt: skip
        subprocess.run(command, env=self._cluster, check=True, capture_output=True)

    def _found(self, name: str) -> list[str]:
        """The ids of living nodes of that name: one or none."""
        nodes = list_nodes(
            address=self._cluster["RAY_API_SERVER_ADDRESS"],
            filters=[("node_name", "=", name), ("state", "=", "ALIVE")],
            # While a node joins, Ray may say that it cannot tell of all
            raise_on_missing_output=False,
        )
        return [node.node_id for node in nodes]

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """Without a word."""
        self.alive.remove(node)
        os.killpg(node.pid, signal.SIGKILL)
        node.wait(60)


@contextmanager
def nodes(cluster: runs.Environment) -> Iterator[Nodes]:
    made = Nodes(cluster)
    try:
        yield made
    finally:
        for node in made.alive:
            # To the end: a node that is killed leaves its workers to notice
            node.terminate()
        for node in made.alive:
            node.wait(60)


@contextmanager
def started(
    run_file: Path, folder: Path, cluster: runs.Environment
) -> Iterator[subprocess.Popen[str]]:
    process = runs.start(run_file, folder, env=cluster)
    try:
        yield process
    finally:
        process.kill()


def until_pending(process: subprocess.Popen[str], cluster: runs.Environment, count: int) -> None:
    """Returns once so many engines wait for a node: the demand that Ray's autoscaler sees."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        waiting = list_actors(
            address=cluster["RAY_API_SERVER_ADDRESS"],
            filters=[("class_name", "=", "RolloutWorker"), ("state", "=", "PENDING_CREATION")],
            raise_on_missing_output=False,
        )
        if len(waiting) == count:
            return
        time.sleep(0.2)
    process.kill()
    raise TimeoutError(f"{count} engines should wait for a node:\n{process.communicate()[0]}")


def test_engines_follow_load_and_outlive_their_nodes(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    run_file = tmp_path / "elastic.yaml"
    run_file.write_text(RUN)
    run_dir = tmp_path / "elastic"
    with nodes(cluster) as cloud, started(run_file, tmp_path, cluster) as process:
        until_pending(process, cluster, 2)
        cloud.add()
        cloud.add()
        runs.wait_for_events(run_dir, "engine joined", 2)
        cloud.drain(1, seconds=30)
        cloud.add()
        cloud.add()
        cloud.lose(cloud.alive[0])
        runs.wait_for_events(run_dir, "engine joined", 3)
        runs.wait_for_events(run_dir, "engine died", 1)
        # The one that was told to go, and, when there is little to do, two of three; be it that one
        # of them has not come back yet
        runs.wait_for_events(run_dir, "engine left", 3)
        # Figures are taken once a second, steps are shorter
        runs.wait_for_step(run_dir, int(runs.metrics(run_dir)[-1]["step"]) + 5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=runs.SECONDS)
    assert process.returncode == 0, output
    lines = runs.metrics(run_dir)
    runs.check_history(run_dir, int(lines[-1]["step"]))
    serving = [line["pool/rollout/serving"] for line in lines]
    assert (serving[0], max(serving), lines[-1]["pool/rollout/target"]) == (1, 3, 1)
    assert lines[-1]["pool/rollout/deaths"] == 1
    assert ("node drains", "") in runs.worker_events(run_dir)
