"""Faults in the middle of a run: a learner rank killed, one that froze, and the router gone."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from benchmarks.killed_rank import workers
from tests.e2e import runs
from tests.e2e.freezing_backend import FREEZES_WHERE

pytestmark = pytest.mark.e2e
STEPS = 12
SECONDS = 90
"""Bounds the wait for a fault to be seen."""


def test_a_run_that_lost_its_learner_and_its_router_ends_as_one_that_did_not(
    finished: Path, tmp_path: Path
) -> None:
    """Deterministic, on-policy: the same weights to the bit, and every group trained once."""
    run_dir, freeze = tmp_path / "tiny", tmp_path / "freeze"
    backend = "learner.backend=tests.e2e.freezing_backend:FreezingBackend"
    environment = {**runs.environment(), FREEZES_WHERE: str(freeze)}
    process = runs.start(runs.TINY, tmp_path, "run.deterministic=true", backend, env=environment)
    try:
        runs.wait_for_step(run_dir, random.randrange(1, 8))
        assert workers(process.pid, "PlacementGroupCleaner") == []
        [rank] = workers(process.pid, "RayTrainWorker")
        os.kill(rank, signal.SIGKILL)
        runs.wait_for_events(run_dir, "learner group fell", seconds=SECONDS)
        freeze.touch()
        runs.wait_for_events(run_dir, "learner group fell", 2, seconds=SECONDS)
        [router] = workers(process.pid, "Router")
        os.kill(router, signal.SIGKILL)
        output, _ = process.communicate(timeout=runs.SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, output
    trained = runs.check_history(run_dir, STEPS)
    expected = runs.check_history(finished, STEPS)
    assert [e.content_hash for e in trained] == [e.content_hash for e in expected]
    assert runs.weights(run_dir, STEPS) == runs.weights(finished, STEPS)
    for name in ("learner/loss", "kl/coef", "mismatch/same_version/tokens", "eval/accuracy"):
        assert [m[name] for m in runs.metrics(run_dir) if name in m] == [
            m[name] for m in runs.metrics(finished) if name in m
        ]
    falls, lives = runs.told(run_dir, "learner group fell"), runs.told(run_dir, "run begins anew")
    assert all(str(fall["why"]).startswith("rank 0: its process ended") for fall in falls)
    assert len(falls) == 2 and len(lives) == 1
    assert "ActorDiedError" in str(lives[0]["why"])
    restarts = runs.summary(run_dir)["restarts"]
    assert isinstance(restarts, list) and len(restarts) == 3
