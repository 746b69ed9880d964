"""The node types that a cluster file declares: a Ray cluster-launcher file, or KubeRay manifests.

Owns reading those files and what is wrong with them. Whether a run fits is
`manta.orchestrator.cluster_fit`'s concern. Loads no ray: the launcher's schema is the installed
Ray's own, read as a file.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema
import yaml

from manta.orchestrator.kuberay_file import group_resources, is_spot_pod, manifest_problems
from manta.orchestrator.role_resources import LEARNER_NODE, NODE_RESOURCES

_Tree: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NodeType:
    """`resources` of one node; the cluster has between `least` and `most` of them. A head is one
    and stays one."""

    name: str
    resources: Mapping[str, float]
    least: int
    most: int
    is_head: bool = False
    is_spot: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """The node resources that it offers."""
        return tuple(name for name in NODE_RESOURCES if self.resources.get(name, 0) > 0)


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """`max_workers` bounds all nodes but the head together."""

    path: str
    kind: str
    name: str
    node_types: tuple[NodeType, ...]
    max_workers: float = math.inf

    @property
    def offered(self) -> frozenset[str]:
        """The node resources that any of its types offers."""
        return frozenset(role for each in self.node_types for role in each.roles)


def read(path: str) -> ClusterFile:
    """The cluster that the file at `path` declares.

    Raises ValueError with all that is wrong, one problem a line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: name a cluster file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text: {error.reason}") from error
    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    clusters = [each for each in documents if _is_cluster(each)]
    if len(clusters) != 1:
        raise ValueError(
            f"{path}: has {len(clusters)} clusters, give a file with one: a Ray cluster-launcher "
            "file (cluster_name, provider, available_node_types) or a KubeRay RayCluster or RayJob"
        )
    cluster = clusters[0]
    if "kind" in cluster:
        _refuse(path, manifest_problems(cluster))
        found = _of_manifest(path, cluster)
    else:
        _refuse(path, _launcher_problems(cluster))
        found = _of_launcher(path, cluster)
    _refuse(path, _problems(found))
    return found


def _refuse(path: str, problems: Sequence[str]) -> None:
    """Raises ValueError where there are any."""
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))


def _is_cluster(document: object) -> bool:
    if not isinstance(document, dict):
        return False
    return "cluster_name" in document or document.get("kind") in ("RayCluster", "RayJob")


def _launcher_problems(tree: _Tree) -> list[str]:
    """By the schema of the installed Ray's launcher."""
    found = importlib.util.find_spec("ray")
    assert found is not None and found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler/ray-schema.json").read_text())
    errors = jsonschema.Draft7Validator(schema).iter_errors(tree)
    problems = [
        f"{'.'.join(str(part) for part in error.absolute_path) or 'top'}: {error.message}"
        for error in errors
    ]
    if problems:
        return problems
    types = tree.get("available_node_types", {})
    head = tree.get("head_node_type")
    if head not in types:
        return [
            f"head_node_type: is {head!r}, must be one of available_node_types "
            f"({', '.join(types) or 'none'})"
        ]
    return [
        f"available_node_types.{name}.resources: gives no CPUs: say how many a node has (CPU: 8; 0 "
        "where no worker shall stand). Ray asks the cloud only when it starts nodes"
        for name, each in types.items()
        if "CPU" not in each["resources"]
    ]


def _of_launcher(path: str, tree: _Tree) -> ClusterFile:
    total = tree.get("max_workers", math.inf)
    types = []
    for name, each in tree["available_node_types"].items():
        is_head = name == tree["head_node_type"]
        resources = {key: float(value) for key, value in each["resources"].items()}
        least, most = each.get("min_workers", 0), each.get("max_workers", total)
        spot = _is_spot(each["node_config"])
        if is_head:
            # Workers of the head's type, which its `max_workers` allows, are not counted on
            least = most = 1
        types.append(NodeType(name, resources, least, most, is_head, spot))
    return ClusterFile(path, "Ray cluster launcher", tree["cluster_name"], tuple(types), total)


def _is_spot(config: _Tree) -> bool:
    """Whether the provider's own words ask for nodes that may be taken back: of AWS, GCP, Azure."""
    scheduling = config.get("scheduling")
    parts = scheduling if isinstance(scheduling, list) else [scheduling]
    preemptible = any(
        isinstance(part, dict)
        and (part.get("preemptible") is True or part.get("provisioningModel") == "SPOT")
        for part in parts
    )
    market = (config.get("InstanceMarketOptions") or {}).get("MarketType")
    azure = (config.get("azure_arm_parameters") or {}).get("priority")
    return preemptible or market == "spot" or azure == "Spot"


def _of_manifest(path: str, tree: _Tree) -> ClusterFile:
    spec = tree["spec"] if tree["kind"] == "RayCluster" else tree["spec"]["rayClusterSpec"]
    head = spec["headGroupSpec"]
    types = [NodeType("head", group_resources(head), 1, 1, True, is_spot_pod(head))]
    for group in spec.get("workerGroupSpecs", []):
        hosts = group.get("numOfHosts", 1)
        replicas = group.get("replicas", 0)
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not spec.get("enableInTreeAutoscaling", False):
            # Nobody changes the number of nodes
            least = most = min(max(replicas, least), most) if least <= most else least
        types.append(
            NodeType(
                group["groupName"],
                group_resources(group),
                least * hosts,
                most * hosts,
                is_spot=is_spot_pod(group),
            )
        )
    return ClusterFile(path, tree["kind"], tree["metadata"]["name"], tuple(types))


def _problems(cluster: ClusterFile) -> list[str]:
    problems = []
    for each in cluster.node_types:
        if each.least < 0 or each.least > each.most:
            problems.append(
                f"node type '{each.name}': at least {each.least:g} and at most {each.most:g} "
                "nodes: the minimum must be 0 or more and not above the maximum"
            )
        if each.is_spot and each.is_head:
            problems.append(
                f"node type '{each.name}' is the head and on spot machines: the cluster and every "
                "run on it end when it is taken back; let it be on-demand"
            )
        if each.is_spot and LEARNER_NODE in each.roles:
            problems.append(
                f"node type '{each.name}' offers {LEARNER_NODE} and is on spot machines: each "
                "time one is taken back the learner starts again from a checkpoint, and reference "
                "workers are gone; let it be on-demand"
            )
    least = sum(each.least for each in cluster.node_types if not each.is_head)
    if least > cluster.max_workers:
        problems.append(
            f"max_workers: is {cluster.max_workers:g}, and the node types' min_workers come to "
            f"{least:g}: raise it, or lower theirs"
        )
    return problems
