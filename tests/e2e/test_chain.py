"""A chain of all kinds of stages, repeated in the middle, killed and resumed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from manta.envs.trajectory_files import TrajectoryReader
from manta.orchestrator.ledger import read_ledger
from manta.orchestrator.products import Products
from tests.e2e import runs

pytestmark = pytest.mark.e2e

CHAIN = Path(__file__).parent / "chain.yaml"
STEPS = {"write": 4, "sft": 24, "learn@2": 36, "rl": 39, "both": 40, "taught": 42}
"""The run's step at the end of some stages."""
KINDS = {
    "stage:write": "data",
    "stage:sft": "weights",
    "stage:sample@1": "data",
    "stage:scored@1": "data",
    "stage:learn@1": "weights",
    "stage:sample@2": "data",
    "stage:scored@2": "data",
    "stage:learn@2": "weights",
    "stage:rl": "weights",
    "stage:both": "weights",
    "stage:taught": "weights",
    "stage:before": "report",
    "stage:after": "report",
}


def weights(run_dir: Path, stage: str) -> dict[str, torch.Tensor]:
    folder = Products(run_dir).folder(f"stage:{stage}", "weights")
    return load_file(folder / "model.safetensors")


def report(run_dir: Path, stage: str) -> dict[str, float]:
    folder = Products(run_dir).folder(f"stage:{stage}", "report")
    found: dict[str, float] = json.loads((folder / "report.json").read_text())
    return found


def references(run_dir: Path) -> list[str]:
    reader = TrajectoryReader(run_dir / "trajectories")
    groups = [
        reader.group(i) for i in range(len(reader)) if reader.entries[i].step > STEPS["learn@2"]
    ]
    assert all(group.reference is not None for group in groups)
    return [group.reference.version for group in groups if group.reference is not None]


def test_a_chain_that_is_killed_leaves_what_one_that_is_left_alone_does(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    result = runs.manta("train", CHAIN, alone, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    # Inside of the stage whose reference is a moving average
    process = runs.start(CHAIN, killed, env=cluster)
    runs.wait_for_step(killed / "chain", STEPS["rl"] - 1)
    process.kill()
    process.communicate()
    result = runs.manta("train", CHAIN, killed, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    one, other = alone / "chain", killed / "chain"
    assert runs.summary(one)["products"] == runs.summary(other)["products"] == KINDS
    for stage in ("sft", "learn@1", "learn@2", "rl", "both", "taught"):
        ours, theirs = weights(one, stage), weights(other, stage)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stage
    assert references(one) == references(other)
    told = set(references(one))
    [mixed_logits] = [each for each in told if each.startswith("1 x stage:rl + w x")]
    assert len(told) == 4, "a version for each step of the moving average, and of the combination"
    last = TrajectoryReader(one / "trajectories" / f"step={STEPS['taught']}").group(0)
    assert last.reference is not None and last.reference.version == mixed_logits
    for trajectory, likeliest in zip(last.trajectories, last.reference.likeliest, strict=True):
        assert likeliest.ids.shape == (trajectory.loss_mask.sum(), 5)
        assert (likeliest.weights > 0).all() and (likeliest.weights != 1).all()
    distances = [
        line["learner/teacher_kl_reverse"]
        for line in runs.metrics(one)
        if "learner/teacher_kl_reverse" in line
    ]
    assert len(distances) == 2 and min(distances) > 0
    assert report(one, "after") == report(other, "after")
    assert report(one, "before")["model"] == "step:7"
    mixed, rl, sft = (weights(one, stage) for stage in ("both", "rl", "sft"))
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.75 * rl[name] + 0.25 * sft[name])
    by_stage = Counter((e.stage, e.outcome) for e in read_ledger(other / "ledger.jsonl"))
    assert by_stage["write", "written"] == 64 and by_stage["sft", "trained"] == 320
    assert by_stage["scored@2", "written"] == 8 and by_stage["learn@2", "trained"] == 4
    gold = [
        line["eval/gold_logprob"]
        for line in runs.metrics(one)
        if line["stage"] == "sft" and "eval/gold_logprob" in line
    ]
    assert gold[-1] > gold[0] + 0.5, "what was written was learnt from"
    scored = TrajectoryReader(Products(one).folder("stage:scored@2", "data"))
    assert len(scored) == 8
    versions = {scored.group(i).reference.version for i in range(8)}  # type: ignore[union-attr]
    assert len(versions) == 1 and next(iter(versions)).startswith("stage:sft#")
    assert set(scored.group(0).scores[0].components) == {"short"}
