"""Whether every worker of a run can find a place on the node types that a cluster file declares.

Owns the packing and the words for what has no place. Works on numbers alone: what roles ask for is
`manta.orchestrator.role_needs`', what nodes have `manta.orchestrator.node_types`'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from manta.orchestrator.config import RunFile
from manta.orchestrator.node_types import ClusterFile, NodeType
from manta.orchestrator.role_needs import role_needs
from manta.orchestrator.role_resources import asked

_SLACK = 1e-9
_NAMES = {"CPU": "CPUs", "GPU": "GPUs"}


@dataclass(frozen=True, slots=True)
class Request:
    """`workers` workers of `role`, each of which asks one node for `resources`; there may come up
    to `more` of them later."""

    role: str
    workers: int
    resources: Mapping[str, float]
    more: int = 0

    @property
    def at_most(self) -> Request:
        return replace(self, workers=self.workers + self.more, more=0)


@dataclass(frozen=True, slots=True)
class Fit:
    """`nodes` by node type that the run takes at once, where it fits; else `problems`."""

    nodes: Mapping[str, int]
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Node:
    kind: NodeType
    left: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = dict(self.kind.resources)

    def take(self, resources: Mapping[str, float]) -> bool:
        """Takes them if they are there."""
        if not _fits(self.left, resources):
            return False
        for name, value in resources.items():
            self.left[name] -= value
        return True


def requests(run_file: RunFile, offered: frozenset[str]) -> tuple[Request, ...]:
    """What the run asks of a cluster whose nodes offer `offered` by role. Colocated engines stand
    beside the learner's ranks, whatever those nodes are called."""
    found = []
    is_colocated = run_file.rollout.placement == "colocated"
    for need in role_needs(run_file):
        neighbour = "learner" if is_colocated and need.role == "rollout" else need.role
        resources = {"CPU": need.cpus, "GPU": need.gpus, **asked(neighbour, offered)}
        wanted = {name: value for name, value in resources.items() if value > 0}
        found.append(Request(need.role, need.workers, wanted, need.more))
    return tuple(found)


def fit(wanted: Sequence[Request], cluster: ClusterFile) -> Fit:
    """Places every worker, the largest first, on nodes that are up and else on new ones."""
    problems = [
        _nowhere(each, cluster)
        for each in wanted
        if not any(_fits(kind.resources, each.resources) for kind in cluster.node_types)
    ]
    if problems:
        return Fit({}, tuple(problems))
    up = [_Node(kind) for kind in cluster.node_types for _ in range(int(kind.least))]
    left_out: Counter[str] = Counter()
    used: set[int] = set()
    order = sorted(wanted, key=lambda e: (-e.resources.get("GPU", 0), -e.resources.get("CPU", 0)))
    for each in order:
        for _ in range(each.workers):
            place = _place(each, up, cluster)
            if place is None:
                left_out[each.role] += 1
            else:
                used.add(place)
    nodes = Counter(up[place].kind.name for place in sorted(used))
    lacking = [each for each in wanted if left_out[each.role]]
    return Fit(nodes, tuple(_too_few(each, left_out[each.role], cluster) for each in lacking))


def _place(request: Request, up: list[_Node], cluster: ClusterFile) -> int | None:
    """The index in `up` of the node that takes one worker; may add a node."""
    for index, node in enumerate(up):
        if node.take(request.resources):
            return index
    counts = Counter(node.kind.name for node in up)
    workers = sum(not node.kind.is_head for node in up)
    if workers >= cluster.max_workers:
        return None
    able = [
        kind
        for kind in cluster.node_types
        if counts[kind.name] < kind.most and _fits(kind.resources, request.resources)
    ]
    if not able:
        return None
    # A worker that needs no GPU must not keep one from others
    least = min(able, key=lambda k: (k.resources.get("GPU", 0), k.resources.get("CPU", 0)))
    up.append(_Node(least))
    up[-1].take(request.resources)
    return len(up) - 1


def _fits(has: Mapping[str, float], asks: Mapping[str, float]) -> bool:
    return not _missing(has, asks)


def _missing(has: Mapping[str, float], asks: Mapping[str, float]) -> list[str]:
    """The resources of which there is less than is asked for."""
    return [name for name, value in asks.items() if has.get(name, 0.0) + _SLACK < value]


def told(resources: Mapping[str, float]) -> str:
    """Resources in words; the share of a node resource is its name alone."""
    parts = [
        f"{value:g} {_NAMES[name]}" if name in _NAMES else name
        for name, value in resources.items()
        if value > 0
    ]
    return ", ".join(parts) or "nothing"


def _keys(role: str) -> str:
    """The keys of the run file that say what a worker of `role` asks for."""
    if role.startswith("scorer "):
        name = role.removeprefix("scorer ")
        return f"scorers.{name}.threads or scorers.{name}.devices"
    return {
        "rollout": "rollout.threads or rollout.devices",
        "learner": "learner.threads or learner.devices",
        "reference": "reference.threads",
    }.get(role, "")


def _count_key(role: str) -> str:
    if role.startswith("scorer "):
        return f"scorers.{role.removeprefix('scorer ')}.workers"
    return "reward_workers.workers" if role == "reward" else f"{role}.workers"


def _nowhere(request: Request, cluster: ClusterFile) -> str:
    lacks = []
    for kind in cluster.node_types:
        has = ", ".join(
            f"{kind.resources.get(name, 0):g} {_NAMES[name]}" if name in _NAMES else f"no {name}"
            for name in _missing(kind.resources, request.resources)
        )
        lacks.append(f"'{kind.name}' has {has}")
    keys = _keys(request.role)
    lower = f", or lower {keys} in the run file" if keys else ""
    return (
        f"{request.role}: no node type can ever hold a worker, which asks for "
        f"{told(request.resources)} on one node ({'; '.join(lacks)}): give a node type more"
        f"{lower}"
    )


def _too_few(request: Request, number: int, cluster: ClusterFile) -> str:
    able = [kind for kind in cluster.node_types if _fits(kind.resources, request.resources)]
    named = ", ".join(f"'{kind.name}' (at most {kind.most:g})" for kind in able)
    total = (
        f" and max_workers ({cluster.max_workers:g})"
        if cluster.max_workers < sum(kind.most for kind in cluster.node_types if not kind.is_head)
        else ""
    )
    return (
        f"{request.role}: {number} of {request.workers} workers, each with "
        f"{told(request.resources)}, find no place even with every node up: raise the maximum of "
        f"{named}{total}, or lower {_count_key(request.role)} in the run file"
    )
