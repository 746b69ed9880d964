"""Where the workers go: connects to Ray and checks, at once, that the cluster can hold them.

Owns what a cluster has, and how Ray is reached. What each role asks for is
`manta.orchestrator.role_needs`'; whether a worker is alive is not its concern.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig  # type: ignore[attr-defined]
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from manta.actors.cores import available_cores
from manta.actors.restored_environment import restored_environment
from manta.orchestrator import node_types
from manta.orchestrator.cluster_fit import requests, too_large
from manta.orchestrator.config import RunFile
from manta.orchestrator.local_ray import environment_of_a_local_ray
from manta.orchestrator.node_types import ClusterFile
from manta.orchestrator.role_needs import role_needs
from manta.orchestrator.role_resources import NODE_RESOURCES
from manta.orchestrator.status import RayStatus
from manta.orchestrator.tls_check import check_tls

_MOST_NODES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Cluster:
    """`address` is empty for a Ray that this process started for itself. `cpus` and `gpus` are what
    it has now, or what it was told that its autoscaler may bring it to, if that is more; `nodes`
    what each node has that is up, and each that the autoscaler may start."""

    address: str
    cpus: float
    gpus: float
    nodes: tuple[Mapping[str, float], ...]

    @property
    def offered(self) -> frozenset[str]:
        """The node resources of its nodes; see `manta.orchestrator.role_resources`."""
        return frozenset(
            name for name in NODE_RESOURCES if any(node.get(name, 0) > 0 for node in self.nodes)
        )


class NotEnoughResources(ValueError):
    """The run asks for more than the cluster has."""


def connect(
    working_dir: str, cluster_file: str | None = None, handed_on: Collection[str] = ()
) -> Cluster:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine alone (localhost only, see
    `manta.orchestrator.local_ray`). Nodes that the autoscaler of `cluster_file` may start count as
    there.

    Secrets in the environment stay in this process: workers of a local Ray inherit only those that
    are `handed_on`, by name. They find plug-ins named `module:attribute` from `working_dir`; on a
    cluster, the job's own working directory has them. A local Ray has as many CPUs as this process
    may use.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    # What Ray would advise on the terminal (its token, its defaults) is settled here.
    logging.getLogger("ray").setLevel(logging.ERROR)
    if found := _host_and_port(address):
        check_tls(*found, os.environ)
    with _joining() if address else environment_of_a_local_ray(working_dir, handed_on):
        try:
            ray.init(
                address or "local",
                num_cpus=None if address else available_cores(),
                include_dashboard=None if address else False,
                log_to_driver=False,
                configure_logging=False,
            )
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ValueError(unreached(address, error)) from error
    if address and cluster_file is not None:
        _declare(node_types.read(cluster_file))
    return within_reach(address)


def _host_and_port(address: str) -> tuple[str, int] | None:
    """Of the control store; None where the address has another form."""
    host, _, port = address.rpartition(":")
    if "/" in host or not port.isdecimal():
        return None
    # As Ray does: other nodes know this one by that address, and so do certificates
    if host in ("localhost", "127.0.0.1", "::1"):
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return host, int(port)


def where_ray_is() -> RayStatus:
    """How another process finds the cluster that this one is connected to."""
    context = ray.get_runtime_context()
    metadata = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {})
    return RayStatus(
        context.gcs_address, context.get_session_name(), metadata.get("job_submission_id", "")
    )


def unreached(address: str, error: Exception) -> str:
    """Why the cluster could not be joined; Ray hides a refused token in what it retried."""
    told = f"{error} {error.__cause__}"
    if isinstance(error, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in told:
        return refused(address)
    return (
        f"no Ray cluster answers at {address} (RAY_ADDRESS): is it up? Unset RAY_ADDRESS to run on "
        "this machine alone"
    )


def refused(address: str) -> str:
    """What to tell a user whose token a cluster did not take."""
    return (
        f"the cluster at {address} asks for a token, and did not take this one, or there was none: "
        "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or, better, in a file "
        "that RAY_AUTH_TOKEN_PATH names (default: ~/.ray/auth_token); docs/cluster.md says where "
        "it is"
    )


def _declare(cluster: ClusterFile) -> None:
    """Tells the cluster, and so every run on it, of its node types: autoscalers keep them to
    themselves."""
    config = ClusterConfig()
    for each in cluster.node_types:
        most = -1 if math.isinf(each.most) else min(int(each.most), _MOST_NODES)
        group = config.node_group_configs.add(
            name=each.name, min_count=min(int(each.least), _MOST_NODES), max_count=most
        )
        group.resources.update({name: int(amount) for name, amount in each.resources.items()})
    client = internal_kv_get_gcs_client()  # type: ignore[no-untyped-call]
    client.report_cluster_config(config.SerializeToString())


def offered_nodes() -> frozenset[str]:
    """The node resources that the cluster has, or may start nodes with; see
    `manta.orchestrator.role_resources`."""
    there = _resources()
    return frozenset(name for name in NODE_RESOURCES if there.get(name, 0) > 0)


def within_reach(address: str) -> Cluster:
    """The cluster at `address`, which this process has joined, as it is now."""
    resources = _resources()
    return Cluster(address, resources.get("CPU", 0.0), resources.get("GPU", 0.0), _nodes())


def _resources() -> dict[str, float]:
    """By resource, what the nodes have together, or what those have that the autoscaler may start,
    where that is more."""
    now: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    # Ray has no public call for the node types that it was told of
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(now.get(name, 0.0), most.get(name, 0.0)) for name in now | most}


def _nodes() -> tuple[Mapping[str, float], ...]:
    """What each node has that is up, and one of each type that the cluster was told of."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    up = [node["Resources"] for node in nodes if node["Alive"]]
    # As in `_resources`
    config = ray._private.state.state.get_cluster_config() or ClusterConfig()
    groups = [group for group in config.node_group_configs if group.max_count != 0]
    return (*up, *(dict(group.resources) for group in groups))


def check_resources(run_file: RunFile, cluster: Cluster) -> None:
    """Raises NotEnoughResources, saying what is there and what is asked by role: of all nodes
    together, and by one worker of a single node."""
    needs = role_needs(run_file)
    for what, has, asks in (
        ("CPUs", cluster.cpus, [need.cpus for need in needs]),
        ("GPUs", cluster.gpus, [need.gpus for need in needs]),
    ):
        told = [(n.workers, n.role, ask) for n, ask in zip(needs, asks, strict=True) if ask > 0]
        asked = sum(workers * ask for workers, _, ask in told)
        if asked > has + 1e-9:
            roles = ", ".join(f"{workers} {role} x {ask:g}" for workers, role, ask in told)
            raise NotEnoughResources(
                f"the run asks for {asked:g} {what} ({roles}), the Ray cluster has {has:g}: "
                "lower the worker counts in the run file or use a larger cluster; where an "
                "autoscaler may start nodes, name the file that says which (run.cluster)"
            )
    if problems := too_large(requests(run_file, cluster.offered), cluster.nodes):
        raise NotEnoughResources("\n".join(problems))


@contextmanager
def _joining() -> Iterator[None]:
    """A cluster that does not answer soon is not there; Ray would try for 20 s."""
    with restored_environment() as environment:
        environment.setdefault("RAY_gcs_server_port_wait_time_s", "6")
        yield
