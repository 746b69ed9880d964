"""Weights through a folder to two engines, in the real run; through Ray they go in every other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e


def test_two_engines_learn_through_a_folder(tmp_path: Path, cluster: runs.Environment) -> None:
    folder = tmp_path / "weights"
    overrides = (
        "rollout.workers=2",
        "publish.transport=disk",
        f"publish.path={folder}",
        "stages.rl.learning_rate=1e-6",
        "model.dtype=bfloat16",
        "publish.probe_tolerance=0.05",
        "stages.rl.algorithm.kl={coef: 0}",
    )
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "tiny"
    sampled = [line for line in runs.metrics(run_dir) if "staleness/mean" in line]
    assert len(sampled) == 8
    full = sum(2 * size for size in parameter_sizes(run_dir))
    for line in sampled:
        assert 0 < line["publish/bytes"] < 2 * full / 4
        assert line["publish/resent"] == 0
        assert line["publish/engine_gap"] <= 1e-4
    assert "not proven" not in (run_dir / "events.jsonl").read_text()
    [own] = folder.iterdir()
    assert own.name.startswith("tiny-")
    assert len(list(own.iterdir())) == 1, "older files are removed"
    evaluated = runs.manta("eval", runs.TINY, tmp_path, *overrides, env=cluster)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert len(list(own.iterdir())) == 1, "an evaluation leaves the run's files alone"


def parameter_sizes(run_dir: Path) -> list[int]:
    """Numbers of each tensor of the last checkpoint, from the header of its safetensors file."""
    data = runs.weights(run_dir, 12)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors = (tensor for name, tensor in header.items() if name != "__metadata__")
    return [(tensor["data_offsets"][1] - tensor["data_offsets"][0]) // 4 for tensor in tensors]
