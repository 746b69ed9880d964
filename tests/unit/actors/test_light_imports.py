"""Processes that only pass things on load no torch: its import is most of a worker's start."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "environment",
        "mailbox",
        "reference",
        "reward",
        "rollout",
        "router",
        "weight_store",
        "learner",
    ],
)
def test_shells_load_no_torch_before_they_need_it(module: str) -> None:
    code = f"import sys, manta.actors.{module}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
