"""A toy reward rises through real Ray actors, synchronously and with staleness."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.ledger import read_ledger
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
    "stages.rl.algorithm.kl={coef: 0}",
    "stages.rl.learning_rate=2e-3",
    "stages.rl.decay=linear",
)


FILTERS = "stages.rl.algorithm.filters=[zero_variance, {name: max_variance, keep: 8}]"


@pytest.mark.parametrize(("staleness", "filters"), [(0, ()), (1, (FILTERS,))])
def test_reward_rises(
    tmp_path: Path, cluster: runs.Environment, staleness: int, filters: tuple[str, ...]
) -> None:
    overrides = (*LEARNS, f"rollout.max_staleness={staleness}", *filters)
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
    steps = [line for line in lines if "learner/loss" in line]
    assert all(0 < line["learner/ess"] <= 1 and "pass_at/16" in line for line in steps)
    assert {line["learner/rows"] for line in steps} == {16 * (8 if filters else 16)}
    if filters:
        _filters_are_told(tmp_path / "tiny", steps)


def _filters_are_told(folder: Path, steps: list[dict[str, float]]) -> None:
    assert {line["samples/filtered/max_variance"] for line in steps} == {16 * 8}
    filtered = [e for e in read_ledger(folder / "ledger.jsonl") if e.outcome == "filtered"]
    counted = sum(line["groups/filtered/zero_variance"] for line in steps)
    assert len(filtered) == counted > 0
    assert {e.reason.partition(":")[0] for e in filtered} == {"zero_variance"}
