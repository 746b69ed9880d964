from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from manta.actors.cores import available_cores

OWN = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores(folder: Path, membership: str, quotas: dict[str, str]) -> int:
    """In a made-up tree of cgroups."""
    (folder / "cgroup").write_text(membership)
    for place, text in quotas.items():
        (folder / "tree" / place).mkdir(parents=True, exist_ok=True)
        (folder / "tree" / place / "cpu.max").write_text(text)
    return available_cores(folder / "cgroup", folder / "tree")


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, OWN),
        ({"pod/job": "max 100000\n"}, OWN),
        ({"pod/job": "100000 100000\n"}, 1),
        ({"pod/job": "max 100000", "pod": "199999 100000"}, 1),
        ({"pod/job": "30000 100000"}, 1),
        ({"pod/job": "99900000 100000"}, OWN),
        ({"other": "100000 100000", "pod/job/below": "100000 100000"}, OWN),
    ],
)
def test_the_smallest_quota_from_here_to_the_root(
    tmp_path: Path, quotas: dict[str, str], expected: int
) -> None:
    assert cores(tmp_path, "1:cpu:/old\n0::/pod/job\n", quotas) == expected


def test_a_process_at_the_root_of_its_own_tree(tmp_path: Path) -> None:
    assert cores(tmp_path, "0::/\n", {".": "100000 100000"}) == 1


def test_cgroups_of_version_1_or_none_are_left_alone(tmp_path: Path) -> None:
    assert cores(tmp_path, "4:cpu,cpuacct:/pod\n", {"pod": "100000 100000"}) == OWN
    assert available_cores(tmp_path / "missing", tmp_path) == OWN


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_mask_counts() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from manta.actors.cores import available_cores; print(available_cores())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
