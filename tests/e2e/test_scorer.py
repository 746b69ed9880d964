"""A run that learns from a reward model: scored exactly, held against gold, through a death."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.util.state import list_actors
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from manta.envs.trajectory_files import TrajectoryReader
from tests.e2e import runs

pytestmark = pytest.mark.e2e
VOCABULARY, PAD = 14, 12
REWARD = (
    "{formula: preference, gold: correct, components: "
    "{preference: {reward: reward_model, scorer: judge}, correct: exact}}"
)


def judge(folder: Path) -> Qwen2ForSequenceClassification:
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16, num_labels=1,
        pad_token_id=PAD,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(config)
    model.score.weight.data.mul_(50)
    model.save_pretrained(folder)
    return model.eval()


def scorer_processes(cluster: runs.Environment) -> list[int]:
    found = list_actors(
        address=cluster["RAY_API_SERVER_ADDRESS"],
        filters=[("class_name", "=", "ScorerWorker"), ("state", "=", "ALIVE")],
    )
    return [actor.pid for actor in found if actor.pid]


def test_a_run_learns_from_a_scorer_and_goes_on_when_a_worker_is_killed(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    model = judge(tmp_path / "judge")
    overrides = (
        f"scorers={{judge: {{model: {tmp_path / 'judge'}, workers: 2, tokens_per_batch: 64}}}}",
        f"stages.rl.reward={REWARD}",
        "stages.rl.algorithm.kl.coef=0",
        "stages.rl.steps=14",
    )
    process = runs.start(runs.TINY, tmp_path, *overrides, env=cluster)
    run_dir = tmp_path / "tiny"
    runs.wait_for_step(run_dir, 8)
    os.kill(scorer_processes(cluster)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=runs.SECONDS)
    assert process.returncode == 0, output
    trained = runs.check_history(run_dir, 18)
    assert len(trained) == 4 * 16 + 14 * 8
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [e["fields"]["scorer"] for e in events if e["name"] == "scorer worker lost"] == ["judge"]
    last = runs.metrics(run_dir)[-2]
    assert last["reward/mean"] == last["reward/preference"] != last["reward/correct"]
    assert last["scorer/judge/calls"] >= 4 and last["scorer/judge/seconds_p50"] > 0
    rewards = runs.summary(run_dir)["stages"][1]["rewards"]  # type: ignore[index]
    assert rewards["proxy_after"] == runs.metrics(run_dir)[-1]["eval/reward"]
    assert "rewards of rl: proxy" in output
    written = TrajectoryReader(run_dir / "trajectories")
    for index in (0, len(written) - 1):
        group = written.group(index)
        assert "judge#" in group.reward_versions["preference"]
        for trajectory, score in zip(group.trajectories, group.scores, strict=True):
            ids = torch.from_numpy(trajectory.token_ids.astype(np.int64))[None]
            with torch.no_grad():
                wanted = float(model(ids).logits[0, 0])
            assert score.value == pytest.approx(wanted, abs=1e-5)
