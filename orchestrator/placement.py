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
    """
    address = os.environ.get("RAY_ADDRESS", "")
    with _without_secrets():
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            runtime_env={"env_vars": {"PYTHONPATH": _python_path(working_dir)}},
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


def _python_path(working_dir: str) -> str:
    """Plug-ins named `module:attribute` are found from the directory of the command."""
    inherited = os.environ.get("PYTHONPATH", "")
    return f"{working_dir}{os.pathsep}{inherited}" if inherited else working_dir


@contextmanager
def _without_secrets() -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _SECRET.search(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)
