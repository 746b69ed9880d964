"""A look at processes of other machines: a small task on each node of the run's cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import ray
import ray.cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta.actors import examination, processes, vitals
from manta.actors.examination import Examined, examine
from manta.actors.processes import Known
from manta.actors.vitals import Identity

_TASK_SECONDS = 30.0


def examine_by_tasks(
    address: str, away: Mapping[str, Sequence[Identity]]
) -> tuple[Mapping[Known, Examined], str]:
    """What each node of `away` says of its workers; what could not be asked, in a sentence."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    # By value: nodes may have the code of the run only, in that job's own folder
    for module in (processes, vitals, examination):
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    found: dict[Known, Examined] = {}
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
            found |= zip((w.process for w in asked[answer]), ray.get(answer), strict=True)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        return found, f"the cluster at {address} could not be asked: {str(error).splitlines()[0]}"
    finally:
        ray.shutdown()
    silent = sorted({worker.process.host for each in late for worker in asked[each]})
    return found, f"{', '.join(silent)} did not answer in {_TASK_SECONDS:g} s" if silent else ""
