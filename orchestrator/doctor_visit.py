"""The doctor's way to the machines of a run: this one directly, others by a task on each.

Owns the connection. What is looked at is `manta.actors.examination`'s.
"""

from __future__ import annotations

import logging
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence

import ray
import ray.cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta.actors import examination, processes, vitals
from manta.actors.examination import Examined, examine
from manta.actors.processes import Known
from manta.actors.vitals import Identity
from manta.orchestrator.status import Status

_CONNECT_SECONDS = 3.0
_TASK_SECONDS = 30.0


def visit(status: Status, workers: Sequence[Identity]) -> tuple[Mapping[Known, Examined], str]:
    """What machines say of `workers`; and what could not be reached, in a sentence."""
    found: dict[Known, Examined] = {}
    here = [each for each in workers if each.process.is_here]
    found |= zip((each.process for each in here), examine(here), strict=True)
    away = defaultdict(list)
    for each in workers:
        if not each.process.is_here:
            away[each.node].append(each)
    if not away:
        return found, ""
    if not _answers(status.ray.address):
        hosts = ", ".join(sorted({each.process.host for group in away.values() for each in group}))
        return found, f"nothing answers at {status.ray.address}, so {hosts} could not be looked at"
    return found, _by_tasks(status.ray.address, away, found)


def _by_tasks(
    address: str, away: Mapping[str, Sequence[Identity]], found: dict[Known, Examined]
) -> str:
    logging.getLogger("ray").setLevel(logging.ERROR)
    # By value: nodes may have the code of the run only, in that job's own folder
    for module in (processes, vitals, examination):
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    try:
        ray.init(address, log_to_driver=False, configure_logging=False)
        remote = ray.remote(examine)
        asked = {
            remote.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(workers): workers
            for node, workers in away.items()
        }
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_TASK_SECONDS)
        for answer in done:
            workers = asked[answer]
            found |= zip((w.process for w in workers), ray.get(answer), strict=True)
        silent = sorted({worker.process.host for each in late for worker in asked[each]})
        return f"{', '.join(silent)} did not answer in {_TASK_SECONDS:g} s" if silent else ""
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        return f"the cluster at {address} could not be asked: {str(error).splitlines()[0]}"
    finally:
        ray.shutdown()


def _answers(address: str) -> bool:
    """Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
