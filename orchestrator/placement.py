"""Where the workers go: connects to Ray and checks, at once, that the cluster can hold them.

Owns the resources that each role asks for. Whether a worker is alive is not its concern.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from manta.orchestrator.batch_plan import role_needs
from manta.orchestrator.config import RunFile

_LOCAL_DEFAULTS = {
    # Nothing is reported to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # No workers ahead of need: they would import everything on a machine that is busy starting.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # One machine is not preempted node by node.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # How often Ray Train looks at its ranks (2 s): a run's start and end wait for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # OpenMP threads wait by spinning. Where roles share cores, a spinning thread keeps the core
    # from the very thread that it waits for (37 times slower, measured): soon they shall sleep.
    "GOMP_SPINCOUNT": "2000",
    # Ray gives its workers a niceness of 15: whatever else runs would starve them.
    "RAY_worker_niceness": "0",
}
_SECRET = re.compile(r"(API_KEY|SECRET|PASSWORD|CREDENTIAL)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cluster:
    """`address` is empty for a Ray that this process started for itself."""

    address: str
    cpus: float
    gpus: float


class NotEnoughResources(ValueError):
    """The run asks for more than the cluster has."""


def connect(working_dir: str) -> Cluster:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine alone (localhost only).

    Secrets in the environment stay in this process: workers of a local Ray do not inherit them.
    They find plug-ins named `module:attribute` from `working_dir`; on a cluster, the job's own
    working directory has them.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    with _environment_of_workers(working_dir):
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Cluster(address, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def check_resources(run_file: RunFile, cluster: Cluster) -> None:
    """Raises NotEnoughResources, saying what is there and what is asked by role."""
    needs = role_needs(run_file)
    asked = sum(need.workers * need.cpus for need in needs)
    if asked > cluster.cpus + 1e-9:
        roles = ", ".join(f"{n.workers} {n.role} x {n.cpus:g}" for n in needs)
        raise NotEnoughResources(
            f"the run asks for {asked:g} CPUs ({roles}), the Ray cluster has {cluster.cpus:g}: "
            "lower the worker counts in the run file or use a larger cluster"
        )


@contextmanager
def _environment_of_workers(working_dir: str) -> Iterator[None]:
    """What a local Ray hands down: plug-ins on the Python path, no secrets, `_LOCAL_DEFAULTS`."""
    before = dict(os.environ)
    for name in [name for name in os.environ if _SECRET.search(name)]:
        del os.environ[name]
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    os.environ["PYTHONPATH"] = os.pathsep.join([working_dir, *inherited])
    for name, value in _LOCAL_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
