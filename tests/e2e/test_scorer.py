"""From imitation over a reward model to learning from it: scored exactly, held against the true
reward, through the death of a worker. Then from rewards within samples: of turns, and of tokens."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from manta.envs.records import ScoredGroup
from manta.envs.trajectory_files import TrajectoryReader
from manta.orchestrator import status
from tests.e2e import runs

pytestmark = pytest.mark.e2e

CHAIN = """
run: {name: chain, seed: 0}
model:
  build: {layers: 2, width: 32, heads: 2, mlp_width: 64}
  tokenizer: "char:0123456789+=\\nuser: noait"
  context: 64
env: {name: arithmetic, digits: 1, eval_size: 20}
scorers:
  judge: {model: "stage:rm", workers: 2, tokens_per_batch: 128}
  after: {model: "stage:rl", kind: logprobs}
  before: {model: "stage:sft", kind: logprobs}
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
  - name: talk
    env: {name: arithmetic, digits: 1, eval_size: 20, tries: 3}
    algorithm: {name: mapo, samples_per_prompt: 4}
    reward:
      formula: "0"
      within: {tries: 2.0}
      components: {tries: {reward: by_turn, rule: format, pattern: "[0-9]"}}
    steps: 2
    prompts_per_step: 8
    evaluate: null
  - name: rto
    algorithm: {name: rto, kl: {coef: 0}}
    reward:
      formula: correct
      within: {likely: 1.0}
      components:
        likely: {reward: token_log_ratio, scorer: after, against: before}
        correct: exact
    steps: 2
    prompts_per_step: 8
    evaluate: null
rollout: {max_new_tokens: 9}
environment: {groups_per_call: 4}
checkpoint: {every_steps: 100}
"""
BEFORE = 60 + 2 + 6
"""Steps before the stage `rl`."""


def judge_process(run_dir: Path) -> int:
    """Of one of the judge's workers, as the run knows them."""
    workers = status.read(run_dir / "status.json").workers
    [judge] = [each for each in workers if each.name == "judge-0"]
    assert judge.identity is not None
    return judge.identity.process.pid


def test_a_chain_learns_from_its_reward_model_and_outlives_a_worker(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    run_file = tmp_path / "chain.yaml"
    run_file.write_text(CHAIN)
    process = runs.start(run_file, tmp_path, env=cluster)
    run_dir = tmp_path / "chain"
    runs.wait_for_step(run_dir, BEFORE + 2)
    os.kill(judge_process(run_dir), signal.SIGKILL)
    output, _ = process.communicate(timeout=runs.SECONDS)
    assert process.returncode == 0, output
    runs.check_history(run_dir, BEFORE + 20, writing=range(61, 63))
    died = [
        who for name, who in runs.worker_events(run_dir) if name == "worker of scorer judge died"
    ]
    assert len(died) == 1 and died[0].startswith("judge-")
    assert "rewards of rl: proxy" in output
    check_learnt_from_the_model(run_dir)
    written = TrajectoryReader(run_dir / "trajectories")
    by_step: dict[int, list[ScoredGroup]] = {}
    for index, entry in enumerate(written.entries):
        if entry.step > BEFORE:
            by_step.setdefault(entry.step, []).append(written.group(index))
    check_scored_exactly(run_dir, [by_step[BEFORE + 1][0], by_step[BEFORE + 16][-1]])
    check_turns([*by_step[BEFORE + 17], *by_step[BEFORE + 18]])
    check_tokens([*by_step[BEFORE + 19], *by_step[BEFORE + 20]])
    steps = [line for line in runs.metrics(run_dir) if "learner/policy_loss" in line]
    assert [line["stage"] for line in steps[-4:]] == ["talk", "talk", "rto", "rto"]
    assert all(line["learner/grad_norm"] > 0 for line in steps[-4:])
    assert all(line["critic/value_loss"] > 0 for line in steps[-2:])


def check_learnt_from_the_model(run_dir: Path) -> None:
    stages = runs.summary(run_dir)["stages"]
    assert isinstance(stages, list)
    [rewards] = [stage["rewards"] for stage in stages if stage["name"] == "rl"]
    lines = [line for line in runs.metrics(run_dir) if line["stage"] == "rl"]
    assert rewards["proxy_after"] == lines[-1]["eval/reward"]
    last = lines[-2]
    assert last["reward/mean"] == last["reward/preference"] != last["reward/correct"]
    assert last["scorer/judge/calls"] >= 4 and last["scorer/judge/seconds_p50"] > 0


def check_scored_exactly(run_dir: Path, groups: Sequence[ScoredGroup]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "products" / "rm").eval()
    for group in groups:
        assert "rm#" in group.reward_versions["preference"]
        for trajectory, score in zip(group.trajectories, group.scores, strict=True):
            ids = torch.from_numpy(trajectory.token_ids.astype(np.int64))[None]
            with torch.no_grad():
                wanted = float(model(ids).logits[0, 0])
            assert score.value == pytest.approx(wanted, abs=1e-5)


def check_turns(groups: Sequence[ScoredGroup]) -> None:
    """Every turn is paid by its own words, and samples differ in their turns."""
    counts = set()
    for group in groups:
        for trajectory, score in zip(group.trajectories, group.scores, strict=True):
            turns = [turn for turn in trajectory.turns if turn.role == "assistant"]
            counts.add(len(turns))
            assert all(turn.text == "no" for turn in trajectory.turns if turn.role == "user")
            wanted = np.zeros(len(trajectory.token_ids), np.float32)
            for turn in turns:
                wanted[turn.end - 1] = 2.0 * (len(turn.text) == 1 and turn.text.isdigit())
            assert score.value == 0.0
            assert score.columns["reward"].tolist() == wanted.tolist()
    assert len(counts) > 1


def check_tokens(groups: Sequence[ScoredGroup]) -> None:
    for group in groups:
        versions = group.reward_versions["likely"]
        assert "rl#" in versions and "sft#" in versions
        for trajectory, score in zip(group.trajectories, group.scores, strict=True):
            paid = score.columns["reward"]
            assert not paid[~trajectory.loss_mask].any() and paid.any()
            assert float(np.abs(paid).max()) <= 0.05 + 1e-7
            assert paid.sum() == pytest.approx(score.components["likely"], abs=1e-6)
