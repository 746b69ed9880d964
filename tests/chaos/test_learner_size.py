"""A learner group that grows onto a node that comes, and leaves one that is about to go."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.chaos.town import town
from tests.e2e import runs

pytestmark = pytest.mark.e2e
CHANGED = "learner group of other ranks"
OVERRIDES = (
    # A rank takes two of a node's three CPUs
    "learner={workers: {min: 1, max: 2, settle_seconds: 1}, threads: 2}",
    "rollout.engine=simulated",
    "rollout.simulated={tokens_per_second: 40, length_median: 2}",
    "publish.probe_tolerance=1000",
    "checkpoint.every_steps=1000",
    "stages.rl.steps=1000",
)


def wait_for_ranks(run_dir: Path, number: int) -> None:
    def has_stepped() -> bool:
        return any(line.get("learner/ranks") == number for line in runs.metrics(run_dir)[-1:])

    runs.wait_until(has_stepped, f"{run_dir}: no step of {number} ranks")


def test_the_learner_group_has_as_many_ranks_as_there_is_place_for(tmp_path: Path) -> None:
    run_dir = tmp_path / "tiny"
    with town(nodes=2, roles=("rollout_node", "learner_node")) as nodes:
        process = runs.start(runs.TINY, tmp_path, *OVERRIDES, env=nodes.environment)
        try:
            runs.wait_for_step(run_dir, 2)
            nodes.add_node("learner_node")
            wait_for_ranks(run_dir, 2)
            # The first one, where the reference worker is too
            nodes.drain("learner_node", seconds=60)
            wait_for_ranks(run_dir, 1)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=runs.SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, output
    lines = [line for line in runs.metrics(run_dir) if "learner/ranks" in line]
    runs.check_history(run_dir, int(lines[-1]["step"]))
    ranks = [line["learner/ranks"] for line in lines]
    assert [b for a, b in zip([0.0, *ranks], ranks, strict=False) if a != b] == [1, 2, 1]
    changes = runs.told(run_dir, CHANGED)
    assert [change["ranks"] for change in changes] == ["1 to 2", "2 to 1"]
    assert [change["steps to replay"] for change in changes] == [0, 0]
    assert "leaving" in str(changes[1]["why"])
    assert runs.summary(run_dir)["restarts"] == []
