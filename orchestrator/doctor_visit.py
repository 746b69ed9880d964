"""The doctor's way to the machines of a run: this one directly, others by a task on each.

What is looked at is `manta.actors.examination`'s. Loads no ray for a run on this machine alone.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence

from manta.actors.examination import Examined, examine
from manta.actors.processes import Known
from manta.actors.vitals import Identity
from manta.orchestrator.status import Status

_CONNECT_SECONDS = 3.0


def visit(status: Status, workers: Sequence[Identity]) -> tuple[Mapping[Known, Examined], str]:
    """What machines say of `workers`; and what could not be reached, in a sentence."""
    here = [each for each in workers if each.process.is_here]
    found = dict(zip((each.process for each in here), examine(here), strict=True))
    away = defaultdict(list)
    for each in workers:
        if not each.process.is_here:
            away[each.node].append(each)
    if not away:
        return found, ""
    if not _answers(status.ray.address):
        hosts = ", ".join(sorted({each.process.host for group in away.values() for each in group}))
        return found, f"nothing answers at {status.ray.address}, so {hosts} could not be looked at"
    from manta.orchestrator.doctor_tasks import examine_by_tasks

    theirs, unreached = examine_by_tasks(status.ray.address, away)
    return {**found, **theirs}, unreached


def _answers(address: str) -> bool:
    """Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
