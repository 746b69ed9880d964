from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from manta.envs.records import GroupId
from manta.orchestrator.finished_order import FinishedOrder


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_it_finds_what_a_search_through_all_finds(seed: int) -> None:
    draw, order = random.Random(seed), FinishedOrder()
    queue: list[GroupId] = []
    finished: set[GroupId] = set()
    for number in range(120):
        action = draw.choice(("enter", "enter", "finish", "leave", "again"))
        group = draw.choice(queue) if queue else None
        if action == "enter" or group is None:
            queue.append(GroupId(0, number, 0))
            order.enter(queue[-1])
        elif action == "finish" and group not in finished:
            finished.add(group)
            order.finish(group)
        elif action == "leave":
            queue.remove(group)
            order.leave(group)
        elif action == "again":
            again = group._replace(attempt=group.attempt + 1)
            queue[queue.index(group)] = again
            order.enter(again, instead_of=group)
        assert order.first() == next((each for each in queue if each in finished), None)
        assert len(order) == len(queue) and all(each in order for each in queue)
