"""`manta check --deep` through the real command: what it measures, and that it leaves nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e


def test_a_deep_check_measures_a_few_steps_and_leaves_nothing(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    folder = tmp_path / "runs"
    result = runs.manta("check", runs.TINY, folder, "--deep", env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    output = result.stdout
    assert "It works. Nothing was left behind." in output
    assert "8 in about" in output, "the steps that the run file asks for"
    for role in ("rollout", "environment", "reward", "reference", "mailbox", "weight_store"):
        assert f"\u2502 {role} " in output, output
    assert "run directory" not in output
    assert not folder.exists()
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(tmp_path) not in listing.stdout


def test_a_deep_check_of_what_cannot_run_says_why(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    result = runs.manta("check", runs.TINY, tmp_path, "--deep", "rollout.workers=500", env=cluster)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "It would fail" in result.stdout and "500 rollout" in result.stdout
    assert list(tmp_path.iterdir()) == []
