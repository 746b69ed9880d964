"""A learner of two ranks that share the parameters out, through the real command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e
STEPS = 6


def test_engines_prove_the_weights_of_two_fsdp_ranks(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    overrides = (
        "learner.backend=fsdp", "learner.workers=2", "learner.tokens_per_micro_batch=64",
        "stages.warm-start.steps=2", "stages.rl.steps=4", "run.deterministic=true",
    )  # fmt: skip
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "tiny"
    runs.check_history(run_dir, STEPS)
    assert all((run_dir / f"trained/rank={rank}.jsonl").stat().st_size for rank in (0, 1))
    # A publish that is not proven says so, and a second one takes the engine out.
    assert "not proven" not in (run_dir / "events.jsonl").read_text()
    gaps = [
        line["mismatch/same_version/gap_max"]
        for line in runs.metrics(run_dir)
        if "mismatch/same_version/gap_max" in line
    ]
    assert len(gaps) == 4
    assert max(gaps) < 1e-4
