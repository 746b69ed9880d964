"""Places for ranks: what is held, also where it is sought and released at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import pytest

from manta.orchestrator import rank_places
from manta.orchestrator.rank_places import RankPlaces


class Cluster:
    """Gives places to the first `room` that are asked for; says so once `may_answer`."""

    def __init__(self, room: int) -> None:
        self._room = room
        self.held: list[object] = []
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()

    def place(self, bundles: object) -> object:
        self.held.append(object())
        return self.held[-1]

    def table(self, group: object) -> Mapping[str, object]:
        self.asked.set()
        assert self.may_answer.wait(10)
        if group not in self.held:
            return {}
        index = self.held.index(group)
        state = "CREATED" if index < self._room else "PENDING"
        return {"state": state, "bundles_to_node_id": {0: f"node-{index}"}}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(room=2)
    monkeypatch.setattr(rank_places, "placement_group", cluster.place)
    monkeypatch.setattr(rank_places, "placement_group_table", cluster.table)
    monkeypatch.setattr(rank_places, "remove_placement_group", cluster.held.remove)
    return cluster


async def test_places_on_nodes_that_stay_are_counted_and_spare_ones_given_back(
    cluster: Cluster,
) -> None:
    places = RankPlaces({"CPU": 1.0, "GPU": 0.0})
    assert await places.seek(3) == 2
    assert await places.seek(3, leaving={"node-0"}) == 1
    assert len(cluster.held) == 3
    assert await places.seek(2) == 2, "the one without a node went first"
    assert len(cluster.held) == 2
    places.release()
    assert not cluster.held


async def test_what_is_released_and_sought_anew_while_nodes_are_asked_for_is_not_mixed_up(
    cluster: Cluster,
) -> None:
    places = RankPlaces({"CPU": 1.0})
    cluster.may_answer.clear()
    first = asyncio.create_task(places.seek(2))
    await asyncio.to_thread(cluster.asked.wait)
    places.release()
    second = asyncio.create_task(places.seek(3))
    await asyncio.sleep(0)
    cluster.may_answer.set()
    await first
    await second
    assert await places.seek(2) == 2
    assert len(cluster.held) == 2
