"""How many CPU cores this process may use; how they are shared out is the caller's business."""

from __future__ import annotations

import os
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def available_cores(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> int:
    """The cores of this process's affinity mask (all of the machine where there is none), or fewer
    where its cgroup, or one above it, has a CPU quota (version 2, `cpu.max`); at least 1.

    A quota is rounded down: a thread too many only waits for the others to be throttled.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *_quotas(membership, cgroups)]))


def _quotas(membership: Path, cgroups: Path) -> list[int]:
    """In whole cores, from this process's cgroup up to the root."""
    if not membership.exists():
        return []
    lines = membership.read_text().splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    folder = cgroups / own
    texts = [
        (place / "cpu.max").read_text().split()
        for place in (folder, *folder.parents)
        if place.is_relative_to(cgroups) and (place / "cpu.max").exists()
    ]
    return [int(quota) // int(period) for quota, period in texts if quota != "max"]
