"""A run on a cluster whose own autoscaler brings nodes and takes them back: by load, by a notice,
and where nodes are lost."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import runs
from tests.e2e.autoscaled import Autoscaled, autoscaled

pytestmark = pytest.mark.e2e

# An engine stands on nodes that offer `rollout_node`, and fills one. One engine makes 20 answers a
# second, three 60; a worker of the environment 27, one of the rewards 25.
RUN = """
run: {name: elastic, seed: 0}
model:
  build: {layers: 1, width: 32, heads: 2, mlp_width: 64}
  tokenizer: "char:0123456789+="
  context: 40
env: {name: arithmetic, digits: 1, eval_size: 20}
reward: {formula: short, components: {short: {reward: length, target: 3, limit: 6}}}
stages:
  - {name: much, algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}}, steps: 80,
     prompts_per_step: 8, learning_rate: 1e-4,
     env: {name: "tests.e2e.slow_world:SlowSums", seconds: 0.15},
     reward: {formula: asks,
              components: {asks: {reward: "tests.e2e.slow_world:Asks", seconds: 0.04}}}}
  - {name: little, algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}}, steps: 1000,
     prompts_per_step: 1, learning_rate: 1e-4}
rollout:
  engine: simulated
  workers: {min: 1, max: 3, idle_seconds: 3}
  max_staleness: 1
  threads: 2
  max_rows: 8
  max_new_tokens: 24
  simulated: {tokens_per_second: 60, length_median: 1e9, length_sigma: 0}
publish: {probe_tolerance: 1000.0}
environment: {workers: {min: 1, max: 2, idle_seconds: 3}, groups_per_call: 2}
reward_workers: {workers: {min: 1, max: 2, idle_seconds: 3}}
checkpoint: {every_steps: 1000}
"""
ROLES = ("engine", "environment worker", "reward worker")


@contextmanager
def started(
    run_file: Path, folder: Path, cloud: Autoscaled, until: Path
) -> Iterator[subprocess.Popen[str]]:
    """The run on `cloud`, under load until a file is there."""
    overrides = (
        f"run.cluster={cloud.file}",
        f"stages.much.env.until={until}",
        f"stages.much.reward.components.asks.until={until}",
    )
    process = runs.start(run_file, folder, *overrides, env=cloud.environment)
    try:
        yield process
    finally:
        process.kill()


def test_nodes_follow_the_load_and_the_run_outlives_most_of_them(tmp_path: Path) -> None:
    run_file = tmp_path / "elastic.yaml"
    run_file.write_text(RUN)
    run_dir, enough = tmp_path / "elastic", tmp_path / "enough"
    with (
        autoscaled(tmp_path, {"CPU": 2, "rollout_node": 1}, most=4) as cloud,
        started(run_file, tmp_path, cloud, enough) as process,
    ):
        runs.wait_for_events(run_dir, "engine joined", 2)
        first = cloud.nodes()
        assert len(first) == 3
        # Nobody stays: one has a notice, the others go without a word
        cloud.notify(first[0], seconds=30)
        cloud.lose(*first[1:])
        runs.wait_for_events(run_dir, "engine died", 2)
        runs.wait_for_events(run_dir, "engine joined", 5)
        for role in ROLES:
            runs.wait_for_events(run_dir, f"{role} joined")
        enough.touch()
        # The one that was told to go, and two of three when there is little to do
        runs.wait_for_events(run_dir, "engine left", 3)
        for role in ROLES:
            runs.wait_for_events(run_dir, f"{role} left")
        runs.wait_until(lambda: len(cloud.nodes()) == 1, "idle nodes are not taken back")
        # Figures are taken once a second, steps are shorter
        runs.wait_for_step(run_dir, int(runs.metrics(run_dir)[-1]["step"]) + 5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=runs.SECONDS)
    assert process.returncode == 0, output
    lines = runs.metrics(run_dir)
    runs.check_history(run_dir, int(lines[-1]["step"]))
    serving = [line["pool/rollout/serving"] for line in lines]
    assert (serving[0], max(serving), lines[-1]["pool/rollout/target"]) == (1, 3, 1)
    assert lines[-1]["pool/rollout/deaths"] >= 2
    waiting = runs.told(run_dir, "worker waits for a node")
    assert all(
        "waits for a node with room for it (2 CPU, rollout_node)" in w["it"] for w in waiting
    )
    assert {event["worker"] for event in waiting} >= {"policy-0", "policy-1", "policy-2"}
    [notice] = runs.told(run_dir, "node drains")
    assert notice["node"] == first[0] and notice["workers"].startswith("policy-")
