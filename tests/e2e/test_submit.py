"""The same run through `ray job submit` against a running Ray head."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.e2e


def test_a_submitted_job_trains(tmp_path: Path, cluster: runs.Environment) -> None:
    submit = ["ray", "job", "submit", "--working-dir", "."]
    train = ["manta", "train", "tests/e2e/tiny.yaml", f"run.dir={tmp_path}"]
    result = subprocess.run(
        [*submit, "--", *train],
        cwd=runs.ROOT, env=cluster, capture_output=True, text=True, timeout=runs.SECONDS,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "run finished" in result.stdout
    runs.check_history(tmp_path / "tiny", 12)
