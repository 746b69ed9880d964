"""PPO through the real run: the critic's warm-up, its figures, and what the checkpoints hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e
STEPS = 10
OVERRIDES = (
    "stages.rl.algorithm={name: ppo, samples_per_prompt: 2, critic: {warmup_steps: 2}}",
    "stages.rl.steps=6",
    "stages.rl.updates_per_step=2",
    "checkpoint.keep=9",
    "evaluate.every_steps=100",
)


def test_ppo_trains_a_critic_and_publishes_none_of_it(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    run_dir = tmp_path / "tiny"
    result = runs.manta("train", runs.TINY, tmp_path, *OVERRIDES, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    runs.check_history(run_dir, STEPS)
    # Steps 5 and 6 train the critic alone: what is published and kept is equal to the bit.
    assert runs.weights(run_dir, 6) == runs.weights(run_dir, 4) != runs.weights(run_dir, 8)
    lines = [line for line in runs.metrics(run_dir) if "critic/value_loss" in line]
    assert [line["step"] for line in lines] == [5, 6, 7, 8, 9, 10]
    assert ["learner/policy_loss" in line for line in lines] == [False] * 2 + [True] * 4
    assert all("critic/explained_variance" in line for line in lines)
    assert all(line["critic/grad_norm"] > 0 for line in lines)
    for step, has_critic in ((4, False), (6, True), (10, True)):
        learner = run_dir / f"checkpoints/step={step:06d}/learner"
        assert not any(name.startswith("critic.") for name in names(learner / "model.safetensors"))
        private = names(learner / "optimizer.safetensors")
        assert ("critic.head.weight" in private) == has_critic


def names(path: Path) -> set[str]:
    """Of the tensors in a safetensors file, from its header."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return set(header) - {"__metadata__"}
