"""A direct transport around real actors: driver, mailbox, store, a rank and two engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import runs
from tests.vllm_here import NEEDS_VLLM

pytestmark = [pytest.mark.e2e, NEEDS_VLLM]


def test_ranks_bring_weights_to_engines_and_what_goes_wrong_comes_through_the_store(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.e2e.hand_over", str(tmp_path)],
        cwd=runs.ROOT,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=runs.SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    well, spoilt, broken = json.loads(result.stdout.splitlines()[-1])
    assert (well["resent"], well["problems"], well["retired"]) == (0, [], [])
    assert well["bytes"] > 0
    assert (spoilt["resent"], spoilt["retired"]) == (1, [])
    assert "its receipt is for weights 2.0 with hash" in spoilt["problems"][0][1]
    assert (broken["resent"], broken["retired"]) == (2, [])
    assert [why for _, why in broken["problems"]] == ["nccl failed: the wire broke"] * 2
    assert max(each["gap"] for each in (well, spoilt, broken)) < 1e-4
