"""A toy reward rises through real Ray actors, synchronously and with staleness."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e

LEARNS = (
    "model.build.layers=2",
    "model.build.width=64",
    "model.build.mlp_width=128",
    "evaluate.prompts=20",
    "evaluate.every_steps=50",
    "checkpoint.every_steps=100",
    "stages.warm-start.steps=40",
    "stages.warm-start.prompts_per_step=32",
    "stages.rl.steps=90",
    "stages.rl.prompts_per_step=16",
    "stages.rl.algorithm.samples_per_prompt=16",
    "stages.rl.algorithm.kl.coef=0",
    "stages.rl.learning_rate=2e-3",
    "stages.rl.decay=linear",
)


@pytest.mark.parametrize("staleness", [0, 1])
def test_reward_rises(tmp_path: Path, cluster: runs.Environment, staleness: int) -> None:
    overrides = (*LEARNS, f"rollout.max_staleness={staleness}")
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in runs.metrics(tmp_path / "tiny") if line["stage"] == "rl"]
    rewards = [line["reward/correct"] for line in lines if "reward/correct" in line]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.1
    assert max(line.get("staleness/max", 0) for line in lines) <= staleness
    # Engine and learner agree under equal weights; what is stale differs by what was learnt.
    assert runs.summary(tmp_path / "tiny")["max_logprob_gap"] < 1e-4  # type: ignore[operator]
    drift = [line["mismatch/stale/gap_max"] for line in lines if "mismatch/stale/tokens" in line]
    assert (len(drift) > 80 and min(drift) > 1e-4) if staleness else drift == []
