"""From imitation over a reward model to learning from it: scored exactly, held against the true
reward, through the death of a worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.util.state import list_actors
from transformers import AutoModelForSequenceClassification

from manta.envs.trajectory_files import TrajectoryReader
from tests.e2e import runs

pytestmark = pytest.mark.e2e

CHAIN = """
run: {name: chain, seed: 0}
model:
  build: {layers: 2, width: 32, heads: 2, mlp_width: 64}
  tokenizer: "char:0123456789+="
  context: 16
env: {name: arithmetic, digits: 1, eval_size: 20}
scorers: {judge: {model: "stage:rm", workers: 2, tokens_per_batch: 64}}
evaluate: {every_steps: 100, prompts: 20}
reward: {formula: correct, components: {correct: exact}}
stages:
  - {name: sft, algorithm: sft, steps: 60, prompts_per_step: 32, learning_rate: 3e-3,
     evaluate: null}
  - {name: samples, kind: generate, algorithm: {name: grpo, samples_per_prompt: 8}, steps: 2,
     prompts_per_step: 32, evaluate: null}
  - {name: rm, algorithm: {name: reward_model, samples_per_prompt: 8}, trajectories: stage:samples,
     steps: 6, prompts_per_step: 8, learning_rate: 1e-3, evaluate: null}
  - name: rl
    algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}}
    steps: 16
    prompts_per_step: 8
    reward:
      formula: preference
      gold: correct
      components: {preference: {reward: reward_model, scorer: judge}, correct: exact}
rollout: {max_new_tokens: 4}
environment: {groups_per_call: 4}
checkpoint: {every_steps: 100}
"""
BEFORE = 60 + 2 + 6
"""Steps before the last stage."""


def scorer_processes(cluster: runs.Environment) -> list[int]:
    found = list_actors(
        address=cluster["RAY_API_SERVER_ADDRESS"],
        filters=[("class_name", "=", "ScorerWorker"), ("state", "=", "ALIVE")],
    )
    return [actor.pid for actor in found if actor.pid]


def test_a_chain_learns_from_its_reward_model_and_outlives_a_worker(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    run_file = tmp_path / "chain.yaml"
    run_file.write_text(CHAIN)
    process = runs.start(run_file, tmp_path, env=cluster)
    run_dir = tmp_path / "chain"
    runs.wait_for_step(run_dir, BEFORE + 2)
    os.kill(scorer_processes(cluster)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=runs.SECONDS)
    assert process.returncode == 0, output
    runs.check_history(run_dir, BEFORE + 16, writing=range(61, 63))
    died = [
        who for name, who in runs.worker_events(run_dir) if name == "worker of scorer judge died"
    ]
    assert len(died) == 1 and died[0].startswith("judge-")
    stages = runs.summary(run_dir)["stages"]
    assert isinstance(stages, list)
    rewards = stages[-1]["rewards"]
    assert rewards["proxy_after"] == runs.metrics(run_dir)[-1]["eval/reward"]
    assert "rewards of rl: proxy" in output
    last = runs.metrics(run_dir)[-2]
    assert last["reward/mean"] == last["reward/preference"] != last["reward/correct"]
    assert last["scorer/judge/calls"] >= 4 and last["scorer/judge/seconds_p50"] > 0
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "products" / "rm").eval()
    written = TrajectoryReader(run_dir / "trajectories")
    for index in (0, len(written) - 1):
        group = written.group(index)
        assert "rm#" in group.reward_versions["preference"]
        for trajectory, score in zip(group.trajectories, group.scores, strict=True):
            ids = torch.from_numpy(trajectory.token_ids.astype(np.int64))[None]
            with torch.no_grad():
                wanted = float(model(ids).logits[0, 0])
            assert score.value == pytest.approx(wanted, abs=1e-5)
