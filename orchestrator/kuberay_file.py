"""What a KubeRay RayCluster or RayJob manifest says of its groups, and what is wrong with it.

Owns the fields that Manta reads and the structure around them, after KubeRay's API reference
(ray.io/v1): it is no whole schema of the custom resource, whose operator checks the rest. How many
CPUs, GPUs and custom resources a group has is worked out as Ray's autoscaler does
(`ray/autoscaler/_private/kuberay`), with which a test compares it. Loads no ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias

_Tree: TypeAlias = dict[str, Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CLUSTER_KEYS = _names(
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions "
    "headGroupSpec headServiceAnnotations managedBy rayVersion suspend workerGroupSpecs"
)
_JOB_KEYS = _names(
    "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint "
    "entrypointNumCpus entrypointNumGpus entrypointResources jobId managedBy metadata "
    "rayClusterSpec runtimeEnvYAML schedule shutdownAfterJobFinishes submissionMode "
    "submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished"
)
_HEAD_KEYS = _names(
    "enableIngress headService labels rayStartParams resources serviceType template"
)
_WORKER_KEYS = _names(
    "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority "
    "rayStartParams replicas resources scaleStrategy suspend template"
)
_SUFFIXES = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)}
_STANDARD = ("CPU", "GPU", "TPU", "memory")
_SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}


def manifest_problems(tree: _Tree) -> list[str]:
    """What is wrong with the manifest, as far as Manta looks, where and what to do."""
    return list(_manifest_problems(tree))


def _manifest_problems(tree: _Tree) -> Iterator[str]:
    if tree.get("apiVersion") != "ray.io/v1":
        yield f"apiVersion: is {tree.get('apiVersion')!r}, must be ray.io/v1"
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        yield "metadata.name: is missing"
    spec = tree.get("spec")
    if not isinstance(spec, dict):
        yield "spec: is missing"
        return
    where = "spec"
    if tree["kind"] == "RayJob":
        yield from _unknown(spec, _JOB_KEYS, where)
        if not isinstance(spec.get("entrypoint"), str):
            yield "spec.entrypoint: is missing: the command that the job runs"
        spec, where = spec.get("rayClusterSpec"), "spec.rayClusterSpec"
        if not isinstance(spec, dict):
            yield f"{where}: is missing: the cluster that the job runs on"
            return
    yield from _cluster_problems(spec, where)


def _cluster_problems(spec: _Tree, where: str) -> Iterator[str]:
    yield from _unknown(spec, _CLUSTER_KEYS, where)
    yield from _group_problems(spec.get("headGroupSpec"), _HEAD_KEYS, f"{where}.headGroupSpec")
    groups = spec.get("workerGroupSpecs", [])
    if not isinstance(groups, list):
        yield f"{where}.workerGroupSpecs: must be a list"
        return
    names = [group.get("groupName") for group in groups if isinstance(group, dict)]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"{where}.workerGroupSpecs: groupName {name!r} is there twice"
    for index, group in enumerate(groups):
        place = f"{where}.workerGroupSpecs[{index}]"
        yield from _group_problems(group, _WORKER_KEYS, place)
        if not isinstance(group, dict):
            continue
        if not isinstance(group.get("groupName"), str):
            yield f"{place}.groupName: is missing"
        for key in ("replicas", "minReplicas", "maxReplicas", "numOfHosts"):
            value = group.get(key, 0)
            if not isinstance(value, int) or isinstance(value, bool):
                yield f"{place}.{key}: is {value!r}, must be a whole number"


def _group_problems(group: object, keys: frozenset[str], where: str) -> Iterator[str]:
    if not isinstance(group, dict):
        yield f"{where}: is missing"
        return
    yield from _unknown(group, keys, where)
    params = group.get("rayStartParams", {})
    if not isinstance(params, dict):
        yield f"{where}.rayStartParams: must be a mapping of texts"
        return
    for key, value in params.items():
        if not isinstance(value, str):
            yield f"{where}.rayStartParams.{key}: is {value!r}, must be text: put it in quotes"
    template = group.get("template")
    pod = template.get("spec") if isinstance(template, dict) else None
    containers = pod.get("containers") if isinstance(pod, dict) else None
    if not isinstance(containers, list) or not containers:
        yield f"{where}.template.spec.containers: is missing; the first one runs Ray"
        return
    for key in ("name", "image"):
        if not isinstance(containers[0], dict) or not isinstance(containers[0].get(key), str):
            yield f"{where}.template.spec.containers[0].{key}: is missing"
            return
    try:
        group_resources(group)
    except ValueError as error:
        yield f"{where}: {error}"


def _unknown(tree: _Tree, known: frozenset[str], where: str) -> Iterator[str]:
    for key in tree:
        if key not in known:
            yield f"{where}.{key}: KubeRay's API reference has no such field"


def group_resources(group: _Tree) -> Mapping[str, float]:
    """The Ray resources of one node of `group`: its own `resources`, else its `rayStartParams`,
    else the limits of its first container. Raises ValueError where they cannot be read."""
    own = group.get("resources") or {}
    params = group.get("rayStartParams") or {}
    limits = group["template"]["spec"]["containers"][0].get("resources") or {}
    bounds = {**(limits.get("requests") or {}), **(limits.get("limits") or {})}
    cpus = own.get("CPU", params.get("num-cpus", bounds.get("cpu")))
    if cpus is None:
        raise ValueError("no CPUs are given: set the first container's resources.limits.cpu")
    gpus = [value for key, value in bounds.items() if key.endswith("gpu")]
    found = {
        "CPU": _quantity(cpus),
        "GPU": _quantity(own.get("GPU", params.get("num-gpus", gpus[0] if gpus else 0))),
    }
    return {**found, **_custom(own, params)}


def _custom(own: _Tree, params: _Tree) -> dict[str, float]:
    if own:
        return {key: _quantity(value) for key, value in own.items() if key not in _STANDARD}
    text = params.get("resources")
    if text is None:
        return {}
    try:
        # KubeRay puts the value on a shell's command line, so it stands in quotes, escaped
        read = json.loads(text[1:-1].replace("\\", ""))
        return {str(key): float(value) for key, value in read.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"rayStartParams.resources: is {text!r}, must look like "
            '\'"{\\"rollout_node\\": 1}"\', quotes and all'
        ) from error


def _quantity(text: object) -> float:
    """A Kubernetes quantity as Ray counts it: rounded up to a whole number."""
    plain = str(text)
    suffix = plain[-1:] if plain[-1:].isalpha() else ""
    try:
        return float(math.ceil(Decimal(plain.removesuffix(suffix)) * _SUFFIXES[suffix]))
    except (InvalidOperation, KeyError) as error:
        raise ValueError(f"{text!r} is no number of CPUs or devices") from error


def is_spot_pod(group: _Tree) -> bool:
    """Does it ask for machines that may be taken back, by a label that clouds give them?"""
    selector = group["template"]["spec"].get("nodeSelector") or {}
    return any(selector.get(label) == value for label, value in _SPOT_LABELS.items())
