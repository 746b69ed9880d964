"""Whether every worker of a run can find a place on the node types that a cluster file declares.

Owns the packing and the words for what has no place. Works on numbers alone: what roles ask for is
`manta.orchestrator.role_needs`', what nodes have `manta.orchestrator.node_types`'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from manta.orchestrator.config import RunFile
from manta.orchestrator.node_types import ClusterFile, NodeType
from manta.orchestrator.role_needs import RoleNeed, role_needs
from manta.orchestrator.role_resources import asked

_SLACK = 1e-9
_NAMES = {"CPU": "CPUs", "GPU": "GPUs"}
_BESIDE = "rollout beside learner"


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
    """What the run asks of a cluster whose nodes offer `offered` by role."""
    needs = {need.role: need for need in role_needs(run_file)}
    found = []
    if run_file.rollout.placement == "colocated" and {"rollout", "learner"} <= needs.keys():
        engine, rank = needs.pop("rollout"), needs.pop("learner")
        found.append(_beside(engine, rank, max(1, run_file.rollout.devices), offered))
    for need in needs.values():
        resources = {"CPU": need.cpus, "GPU": need.gpus, **asked(need.role, offered)}
        found.append(Request(need.role, need.workers, _positive(resources), need.more))
    return tuple(found)


def _beside(engine: RoleNeed, rank: RoleNeed, ranks: int, offered: frozenset[str]) -> Request:
    """A colocated engine and the `ranks` whose devices it takes stand on one node."""
    cpus, gpus = engine.cpus + ranks * rank.cpus, ranks * rank.gpus
    resources = {"CPU": cpus, "GPU": gpus, **asked("learner", offered)}
    return Request(_BESIDE, engine.workers, _positive(resources))


def _positive(resources: Mapping[str, float]) -> Mapping[str, float]:
    return {name: value for name, value in resources.items() if value > 0}


def fit(wanted: Sequence[Request], cluster: ClusterFile) -> Fit:
    """Places every worker, the largest first: at first on as few nodes as will do, and where that
    leaves one out, with every node up."""
    problems = [
        _nowhere(each, cluster)
        for each in wanted
        if not any(_fits(kind.resources, each.resources) for kind in cluster.node_types)
    ]
    if problems:
        return Fit({}, tuple(problems))
    order = sorted(wanted, key=lambda e: (-e.resources.get("GPU", 0), -e.resources.get("CPU", 0)))
    few = [_Node(kind) for kind in cluster.node_types for _ in range(int(kind.least))]
    left_out = {each.role: _fill(each, few, cluster) for each in order}
    if not any(left_out.values()):
        return Fit(_taken(few), ())
    every = _every_node(order, cluster)
    if not any(_spread(each, every) for each in order):
        return Fit(_taken(every), ())
    lacking = [each for each in wanted if left_out[each.role]]
    return Fit({}, tuple(_too_few(each, left_out[each.role], cluster) for each in lacking))


def too_large(wanted: Sequence[Request], nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """One line for each role of which not one worker has room on any of `nodes`, whatever else
    stands there."""
    return [
        _no_node(each, nodes)
        for each in wanted
        if not any(_fits(node, each.resources) for node in nodes)
    ]


def _taken(nodes: Sequence[_Node]) -> Mapping[str, int]:
    return Counter(node.kind.name for node in nodes if node.left != node.kind.resources)


def _fill(request: Request, up: list[_Node], cluster: ClusterFile) -> int:
    """Places the workers on one node of `up` after the other, and adds nodes where these are full;
    how many workers are left out."""
    left = request.workers
    for node in up:
        while left > 0 and node.take(request.resources):
            left -= 1
    while left > 0 and (kind := _least(request, up, cluster)) is not None:
        up.append(_Node(kind))
        while left > 0 and up[-1].take(request.resources):
            left -= 1
    return max(0, left)


def _least(request: Request, up: Sequence[_Node], cluster: ClusterFile) -> NodeType | None:
    """The type of the next node: a worker that needs no GPU must not keep one from others."""
    if sum(not node.kind.is_head for node in up) >= cluster.max_workers:
        return None
    counts = Counter(node.kind.name for node in up)
    able = [
        kind
        for kind in cluster.node_types
        if counts[kind.name] < kind.most and _fits(kind.resources, request.resources)
    ]
    return min(able, key=_size, default=None)


def _every_node(wanted: Sequence[Request], cluster: ClusterFile) -> list[_Node]:
    """All that may be up, the largest first where `max_workers` leaves some out; of no type more
    than there are workers."""
    useful = [
        kind
        for kind in cluster.node_types
        if any(_fits(kind.resources, each.resources) for each in wanted)
    ]
    nodes = [_Node(kind) for kind in useful for _ in range(int(kind.least))]
    workers = sum(each.workers for each in wanted)
    room = cluster.max_workers - sum(k.least for k in cluster.node_types if not k.is_head)
    for kind in sorted(useful, key=_size, reverse=True):
        more = max(0, int(min(kind.most - kind.least, room, workers)))
        nodes += [_Node(kind) for _ in range(more)]
        room -= more
    return nodes


def _spread(request: Request, nodes: Sequence[_Node]) -> int:
    """Places the workers one by one in turn on those `nodes` that have room; how many are left
    out."""
    left, has_room = request.workers, True
    while left > 0 and has_room:
        has_room = False
        for node in nodes:
            if left > 0 and node.take(request.resources):
                left, has_room = left - 1, True
    return max(0, left)


def _size(kind: NodeType) -> tuple[float, float]:
    return kind.resources.get("GPU", 0), kind.resources.get("CPU", 0)


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
        _BESIDE: "rollout.threads, learner.threads or rollout.devices",
        "learner": "learner.threads or learner.devices",
        "reference": "reference.threads",
    }.get(role, "")


def _count_key(role: str) -> str:
    if role.startswith("scorer "):
        return f"scorers.{role.removeprefix('scorer ')}.workers"
    other = {"reward": "reward_workers.workers", _BESIDE: "rollout.workers"}
    return other.get(role, f"{role}.workers")


def _nowhere(request: Request, cluster: ClusterFile) -> str:
    lacks = []
    for kind in cluster.node_types:
        missing = _missing(kind.resources, request.resources)
        lacks.append(f"'{kind.name}' has {_has(kind.resources, missing)}")
    return (
        f"{request.role}: no node type can ever hold a worker, which asks for "
        f"{told(request.resources)} on one node ({'; '.join(lacks)}): give a node type more"
        f"{_or_lower(request)}"
    )


def _no_node(request: Request, nodes: Sequence[Mapping[str, float]]) -> str:
    def nearness(node: Mapping[str, float]) -> float:
        return sum(min(1.0, node.get(name, 0) / ask) for name, ask in request.resources.items())

    nearest = max(nodes, key=nearness, default={})
    return (
        f"{request.role}: no node can hold a worker, which asks for {told(request.resources)} on "
        f"one node; the one that comes nearest has {_has(nearest, request.resources)}: join one "
        "that has it all"
        f"{_or_lower(request)}; where an autoscaler may start larger nodes, name the file that "
        "says which (run.cluster)"
    )


def _has(node: Mapping[str, float], names: Iterable[str]) -> str:
    parts = []
    for name in names:
        if name in _NAMES:
            parts.append(f"{node.get(name, 0):g} {_NAMES[name]}")
        else:
            parts.append(name if node.get(name, 0) > 0 else f"no {name}")
    return ", ".join(parts)


def _or_lower(request: Request) -> str:
    keys = _keys(request.role)
    return f", or lower {keys} in the run file" if keys else ""


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
