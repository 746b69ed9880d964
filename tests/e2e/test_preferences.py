"""A reward model from pairs in a file, after a warm start: trained, resumed, and written out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from manta.actors.backends.settings import REWARD
from manta.actors.backends.state_files import read_resident
from manta.actors.stored_folder import StoredFolder
from manta.algorithms.part_settings import RewardModelSettings
from manta.envs.tokenizer import build_tokenizer
from manta.orchestrator import run_file as run_files
from manta.orchestrator.reward_model_export import export_reward_model
from tests.e2e import runs

pytestmark = pytest.mark.e2e
RUN = """
run: {name: pairs, seed: 0, deterministic: true}
model:
  build: {layers: 2, width: 32, heads: 2, mlp_width: 64}
  tokenizer: "char:0123456789+="
  context: 16
env: {name: preferences, train: DATA, eval_size: 20}
stages:
  - {name: warm-start, algorithm: sft, steps: 4, prompts_per_step: 16, learning_rate: 3e-3}
  - name: reward-model
    algorithm: {name: reward_model, reward_model: {learning_rate: 1e-2}}
    steps: 24
    prompts_per_step: 16
rollout: {max_new_tokens: 4}
checkpoint: {every_steps: 12, keep: 9}
"""
STEPS = 28


def test_a_reward_model_from_pairs_in_a_file(tmp_path: Path, cluster: runs.Environment) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"{a}+{b}=", "chosen": f"{a + b}", "rejected": f"{a + b}+"}
        for a in range(12)
        for b in range(12)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_file = tmp_path / "run.yaml"
    run_file.write_text(RUN.replace("DATA", str(data)))
    result = runs.manta("train", run_file, tmp_path / "once", env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "once" / "pairs"
    runs.check_history(run_dir, STEPS)
    lines = [line for line in runs.metrics(run_dir) if "pairs/accuracy" in line]
    assert [line["step"] for line in lines] == list(range(5, STEPS + 1))
    assert lines[0]["pairs/count"] == 16
    assert sum(line["pairs/accuracy"] for line in lines[-3:]) / 3 > 0.9
    # The policy is what the warm start left, to the bit; the reward model lies beside it.
    assert runs.weights(run_dir, 4) == runs.weights(run_dir, STEPS)
    with safe_open(learner_of(run_dir) / "optimizer.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert {"reward.head.weight", "reward.body.norm.weight"} <= set(names)
    # A run that goes on from the checkpoint before ends with the same reward model.
    shutil.copytree(tmp_path / "once", tmp_path / "twice")
    resumed = tmp_path / "twice" / "pairs"
    shutil.rmtree(learner_of(resumed).parent)
    (resumed / "summary.json").unlink()
    result = runs.manta("train", run_file, tmp_path / "twice", env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    starts = (resumed / "incarnations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in starts] == [0, 16]
    ends = [read_resident(learner_of(each), REWARD) for each in (run_dir, resumed)]
    assert all(torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items())
    check_exported(run_dir, tmp_path / "exported")


def learner_of(run_dir: Path) -> Path:
    return run_dir / f"checkpoints/step={STEPS:06d}/learner"


def check_exported(run_dir: Path, folder: Path) -> None:
    """transformers scores a right answer higher than a wrong one."""
    loaded = run_files.load(run_dir / "config.yaml")
    learner = StoredFolder.at(str(learner_of(run_dir)))
    export_reward_model(loaded, RewardModelSettings(), learner, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    text = build_tokenizer("char:0123456789+=")
    scores = [
        model(input_ids=torch.tensor([[*text.encode(each), text.eos_id]])).logits.item()
        for each in ("3+4=7", "3+4=7+")
    ]
    assert scores[0] > scores[1] + 1
