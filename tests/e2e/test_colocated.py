"""Learner and engine on one device learn what they learn on two, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e
STEPS = 12


def test_a_colocated_run_is_the_disaggregated_one_in_turns(
    finished: Path, tmp_path: Path, cluster: runs.Environment
) -> None:
    overrides = ("run.deterministic=true", "rollout.placement=colocated")
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "tiny"
    trained = runs.check_history(run_dir, STEPS)
    expected = runs.check_history(finished, STEPS)
    assert [e.content_hash for e in trained] == [e.content_hash for e in expected]
    assert (run_dir / "ledger.jsonl").read_bytes() == (finished / "ledger.jsonl").read_bytes()
    assert runs.weights(run_dir, STEPS) == runs.weights(finished, STEPS)
    assert "not proven" not in (run_dir / "events.jsonl").read_text()
    lines = [line for line in runs.metrics(run_dir) if "time/step" in line]
    assert len(lines) == STEPS
    for line in lines:
        assert line["device/asleep_seconds"] > 0
        # The warm start publishes at its end only: engines sleep through the steps between.
        takes_turns = line["step"] not in (2, 3)
        assert (line["device/awake_seconds"] > 0) == takes_turns
        assert (line["device/turning_seconds"] > 0) == takes_turns
    assert not any("device/asleep_seconds" in line for line in runs.metrics(finished))
