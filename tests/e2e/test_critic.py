"""PPO through the real run: the critic's warm-up, its figures, and what the checkpoints hold. Then
ReMax and GRAO, whose prompts have a row beside their samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manta.envs.trajectory_files import TrajectoryReader
from tests.e2e import runs

pytestmark = pytest.mark.e2e
STEPS = 10
BESIDE = """\
  - {name: remax, algorithm: remax, steps: 2, prompts_per_step: 8, evaluate: null}
  - {name: grao, algorithm: {name: grao, samples_per_prompt: 3}, steps: 2, prompts_per_step: 8,
     evaluate: null}
"""
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
    run_dir, run_file = tmp_path / "tiny", tmp_path / "run.yaml"
    run_file.write_text(runs.TINY.read_text().replace("rollout:", f"{BESIDE}rollout:"))
    result = runs.manta("train", run_file, tmp_path, *OVERRIDES, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    runs.check_history(run_dir, STEPS + 4)
    check_companions(run_dir)
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


def check_companions(run_dir: Path) -> None:
    """They were made, written and counted apart, and the given ones trained."""
    written = TrajectoryReader(run_dir / "trajectories")
    for line in runs.metrics(run_dir)[-4:]:
        groups = [
            written.group(i)
            for i, entry in enumerate(written.entries)
            if entry.step == line["step"]
        ]
        beside = [group.companion for group in groups if group.companion is not None]
        assert len(beside) == len(groups) == 8
        kind = {"remax": "greedy", "grao": "given"}[line["stage"]]
        assert {each.kind for each in beside} == {kind}
        mean = sum(each.score.value for each in beside) / 8
        assert line["companion/reward"] == pytest.approx(mean)
        samples = {"remax": 1, "grao": 3}[line["stage"]]
        assert (line["samples"], line["learner/rows"]) == (
            8 * samples,
            8 * (samples + (kind == "given")),
        )
        assert line["mismatch/same_version/tokens"] == line["tokens/completion"]
        assert line["learner/kl_behaviour"] < 1e-4 and "learner/ratio_mean" not in line


def names(path: Path) -> set[str]:
    """Of the tensors in a safetensors file, from its header."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return set(header) - {"__metadata__"}
