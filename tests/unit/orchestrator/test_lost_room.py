"""A cluster that lost nodes: a later life waits for them, and says so where they do not come."""

from __future__ import annotations

import asyncio

import pytest

from manta.envs.records import Json
from manta.orchestrator import lost_room
from manta.orchestrator.lost_room import await_room
from manta.orchestrator.placement import NotEnoughResources
from manta.orchestrator.rebirth import Rebirths
from manta.orchestrator.wait import Waits


class Cluster:
    """Has too little until it `has_room`."""

    def __init__(self) -> None:
        self.has_room = False
        self.looks = 0
        self.told: list[tuple[str, Json]] = []

    def check(self) -> None:
        self.looks += 1
        if not self.has_room:
            raise NotEnoughResources("the run asks for 4 CPUs, the Ray cluster has 2")

    def event(self, name: str, fields: dict[str, Json]) -> None:
        self.told.append((name, fields["why"]))


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_room, "_LOOK_SECONDS", 0.01)


async def test_a_later_life_goes_on_once_the_nodes_are_back() -> None:
    cluster, waits = Cluster(), Waits()
    waiting = asyncio.create_task(await_room(cluster.check, waits, 20.0, cluster.event))  # type: ignore[arg-type]
    while cluster.looks < 3:
        await asyncio.sleep(0.01)
    assert [each.name for each in waits.current()] == [
        "the cluster to have again what the run asks for"
    ]
    cluster.has_room = True
    await waiting
    why = "the run asks for 4 CPUs, the Ray cluster has 2"
    assert cluster.told == [("run waits for nodes", why)]


async def test_nodes_that_do_not_come_back_end_the_run_with_what_is_missing() -> None:
    cluster = Cluster()
    with pytest.raises(NotEnoughResources, match=r"in 0\.1 s: the run asks for 4 CPUs") as ended:
        await await_room(cluster.check, Waits(), 0.1, cluster.event)  # type: ignore[arg-type]
    assert not Rebirths(2).follows(ended.value, 4)
