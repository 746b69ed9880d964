"""Notices that nodes get, on scripted workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manta.actors.processes import Known
from manta.actors.vitals import Identity
from manta.envs.records import Json
from manta.orchestrator.draining_nodes import DrainingNodes
from manta.orchestrator.health import WorkerReport
from manta.orchestrator.seats import LEAVE_SECONDS


@dataclass(frozen=True)
class Id:
    text: str

    def hex(self) -> str:
        return self.text


@dataclass(frozen=True)
class Handle:
    _actor_id: Id


@dataclass
class OpenSeats:
    """Of workers a and b; remembers who was told to move, and how much time it has."""

    moved: list[tuple[str, float]] = field(default_factory=list)

    def workers(self) -> dict[str, Handle]:
        names = {"policy-0": "a", "policy-1": "b"}
        left = names.keys() - {name for name, _ in self.moved}
        return {name: Handle(Id(key)) for name, key in names.items() if name in left}

    def move(self, name: str, seconds: float) -> None:
        self.moved.append((name, seconds))


def report(key: str, name: str, node: str) -> WorkerReport:
    identity = Identity(Known("host", 1, 1.0), node, "/log", 3)
    return WorkerReport(key, "rollout", name, "alive", 0.0, "", identity)


WORKERS = (
    report("a", "policy-0", "n0"),
    report("b", "policy-1", "n1"),
    report("rank-0-7", "rank-0", "n1"),
)


class Case:
    def __init__(self) -> None:
        self.seats, self.events = OpenSeats(), list[tuple[str, Mapping[str, Json]]]()
        self.nodes = DrainingNodes(
            [self.seats],  # type: ignore[list-item]
            lambda: WORKERS,
            lambda name, fields: self.events.append((name, fields)),
            lambda: 1000.0,
        )


def test_workers_of_a_node_that_drains_move_while_it_is_there() -> None:
    case = Case()
    for _ in range(2):
        case.nodes.hear({"n1": 1_030_000})
    told = {"node": "n1", "workers": "policy-1, rank-0", "seconds_left": 30.0}
    assert case.events == [("node drains", told)]
    assert case.seats.moved == [("policy-1", 25.0)]


def test_a_notice_without_an_end_leaves_the_usual_time() -> None:
    case = Case()
    case.nodes.hear({"n0": 0})
    assert case.events == [("node drains", {"node": "n0", "workers": "policy-0"})]
    assert case.seats.moved == [("policy-0", LEAVE_SECONDS)]


def test_a_node_that_has_none_of_them_is_nobodys_concern() -> None:
    case = Case()
    case.nodes.hear({"idle": 0})
    assert case.events == [] and case.seats.moved == []
