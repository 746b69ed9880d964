"""A Ray that Manta starts for itself: who reaches it, and what its workers inherit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import runs
from tests.e2e.sockets import check_closed

pytestmark = pytest.mark.e2e
SECRETS = {
    "HF_TOKEN": "hf-1",
    "GITHUB_TOKEN": "gh-2",
    "AWS_SESSION_TOKEN": "aws-3",
    "AWS_SECRET_ACCESS_KEY": "aws-4",
    "WANDB_API_KEY": "wandb-5",
    "DB_PASSWORD": "db-6",
    "GOOGLE_APPLICATION_CREDENTIALS": "google-7",
}
"""What stays with the driver unless it is named."""
PLAIN = {"TOKENIZERS_PARALLELISM": "false", "AWS_WEB_IDENTITY_TOKEN_FILE": "/x", "MAX_TOKENS": "8"}


def test_it_is_closed_and_its_workers_inherit_no_secrets(tmp_path: Path) -> None:
    environment = {
        **runs.environment(),
        **SECRETS,
        **PLAIN,
        "HOME": str(tmp_path),
        # What a user has set for a cluster
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "of-a-cluster",
        "RAY_USE_TLS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.own_ray", "AWS_SECRET_ACCESS_KEY", "NOT_SET"],
        cwd=runs.ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    check_closed(found["listening"])
    ranks = [name for name, _ in found["listening"] if name.startswith("ray::RayTrain")]
    assert len(ranks) >= 2 * 2 + 1, "each one's own and that of its peer; the store of both"
    assert found["without token"] == "UNAUTHENTICATED"
    assert not (tmp_path / ".ray").exists()
    assert found["mode"] == "0o700", found["folder"]

    inherited = found["environment"]
    assert {name for name in SECRETS if name in inherited} == {"AWS_SECRET_ACCESS_KEY"}
    assert inherited["AWS_SECRET_ACCESS_KEY"] == "aws-4"
    assert not {"hf-1", "gh-2", "aws-3", "wandb-5", "of-a-cluster"} & set(inherited.values())
    assert PLAIN.items() <= inherited.items()
    assert inherited["RAY_AUTH_MODE"] == "token"
    assert len(inherited["RAY_AUTH_TOKEN"]) == 64
