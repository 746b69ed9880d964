"""The folder of a Ray that Manta starts for itself; the rest takes a real one
(tests/e2e/test_local_ray.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from manta.orchestrator.local_ray import environment_of_a_local_ray


def test_nobody_else_may_enter_the_folder_of_its_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    before = dict(os.environ)
    for _ in range(2):
        with environment_of_a_local_ray("."):
            folder = Path(os.environ["RAY_TMPDIR"])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert dict(os.environ) == before

    folder.chmod(0o755)
    with pytest.raises(ValueError, match=r"manta-ray-\d+: .* set RAY_TMPDIR to a folder"):
        environment_of_a_local_ray(".").__enter__()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="remove it"):
        environment_of_a_local_ray(".").__enter__()
    assert dict(os.environ) == before
