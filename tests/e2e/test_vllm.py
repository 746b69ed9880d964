"""A run whose engine is vLLM, ahead of the learner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from manta.actors.models.adapter import is_adapter
from manta.orchestrator.cli import main
from manta.orchestrator.metrics import IDLE_SHARE, KL, LOGPROB_GAP, MAX_STALENESS
from tests.e2e import runs
from tests.vllm_here import NEEDS_VLLM, devices

pytestmark = [pytest.mark.e2e, NEEDS_VLLM]


def test_vllm_samples_ahead_of_the_learner(tmp_path: Path, cluster: runs.Environment) -> None:
    """Twelve steps at staleness 2: the history is whole, and the engine's log-probs are the
    learner's wherever both had the same weights."""
    overrides = [
        "rollout.engine=vllm",
        f"rollout.devices={devices()}",
        "rollout.max_staleness=2",
        "model.build.width=64",
        "run.deadline_minutes=4",
    ]
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "tiny"
    runs.check_history(run_dir, steps=12)
    lines = runs.metrics(run_dir)
    assert max(line.get(MAX_STALENESS, 0) for line in lines) == 2
    idle = [line[IDLE_SHARE] for line in lines if IDLE_SHARE in line and MAX_STALENESS in line]
    # An engine that has sampled all that it may be ahead makes nothing between two publishes
    assert len(idle) >= 7 and all(0.0 < share <= 1.0 for share in idle) and min(idle) < 1.0
    gaps = [line[LOGPROB_GAP] for line in lines if LOGPROB_GAP in line]
    assert gaps
    assert max(gaps) < 1e-4
    assert max(line.get("publish/probe_gap", 0) for line in lines) < 1e-4


def test_an_adapter_is_learnt_published_and_exported(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    """A LoRA learner under vLLM: what moves is the adapter, engine and learner agree, and what is
    exported is the merged model."""
    overrides = [
        "rollout.engine=vllm",
        f"rollout.devices={devices()}",
        "model.build.width=64",
        "model.lora={rank: 8, targets: [q_proj, v_proj, up_proj]}",
        "stages.warm-start.steps=2",
        "stages.rl.steps=3",
        "evaluate=null",
        "run.deadline_minutes=4",
    ]
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "tiny"
    runs.check_history(run_dir, steps=5)
    lines = runs.metrics(run_dir)
    gaps = [line[LOGPROB_GAP] for line in lines if LOGPROB_GAP in line]
    assert len(gaps) == 3
    assert max(gaps) < 1e-4
    assert max(line.get("publish/probe_gap", 0) for line in lines) < 1e-4
    # Warm-started, the policy is no longer the reference, which has no adapter
    assert min(line[KL] for line in lines if KL in line) > 1e-5
    first, last = (
        load_file(run_dir / f"checkpoints/step={step:06d}/learner/model.safetensors")
        for step in (2, 5)
    )
    assert is_adapter(last)
    assert all(not torch.equal(first[name], last[name]) for name in last)
    assert main(["export", str(run_dir), str(tmp_path / "exported")]) == 0
    names = set(load_file(tmp_path / "exported" / "model.safetensors"))
    assert not is_adapter(names) and "model.embed_tokens.weight" in names
