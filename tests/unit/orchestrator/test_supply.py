from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import ray

from manta.actors.lanes import Admission, Broken
from manta.envs.records import GroupId
from manta.envs.sources.order import EpochOrder
from manta.orchestrator.attempts import MAX_ATTEMPTS, MAX_LOSSES
from manta.orchestrator.feed import Feed
from manta.orchestrator.rebirth import Rebirths
from manta.orchestrator.supply import (
    MAX_DROPPED_IN_A_ROW,
    Finished,
    NothingIsMade,
    Supply,
)
from tests.unit.orchestrator.groups import Outcome, Script, ScriptedPool, summary, turns


def made(admission: Admission) -> Outcome:
    return summary(admission.id)


def supply_of(
    pool: ScriptedPool, slots: int = 4, groups_per_call: int = 1, keeps_place: bool = False
) -> Supply:
    feed: Feed[Finished] = Feed(EpochOrder(1000, 0, shuffle=False), slots, keeps_place)
    return Supply(feed, pool, "lane", groups_per_call)  # type: ignore[arg-type]


@asynccontextmanager
async def running(supply: Supply) -> AsyncIterator[None]:
    task = asyncio.create_task(supply.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def breaks(place: int, times: int) -> Script:
    """The group at `place` breaks `times` times."""
    tries: list[GroupId] = []

    def script(admission: Admission) -> Outcome:
        if admission.id.position != place:
            return made(admission)
        tries.append(admission.id)
        return Broken(admission.id, "gone") if len(tries) <= times else made(admission)

    return script


@pytest.mark.parametrize("groups_per_call", [1, 3])
async def test_groups_come_in_admission_order_however_they_finish(groups_per_call: int) -> None:
    pool = ScriptedPool(made, delay=lambda admission: 40 - 7 * (admission.id.position % 5))
    supply = supply_of(pool, slots=6, groups_per_call=groups_per_call)
    async with running(supply):
        for expected in range(12):
            group, finished = await supply.take(1)
            assert group == GroupId(0, expected, 0)
            assert finished.summary.id == group
            await supply.free([group])
    assert max(len(call) for call in pool.calls) == groups_per_call


async def test_a_place_in_a_block_counts_the_groups_that_were_made() -> None:
    supply = supply_of(ScriptedPool(breaks(1, times=1)), slots=3, groups_per_call=3)
    async with running(supply):
        taken = [await supply.take(1) for _ in range(3)]
    where = [(group, finished.block, finished.place) for group, finished in taken]
    assert where == [
        (GroupId(0, 0, 0), "block-0", 0),
        (GroupId(0, 2, 0), "block-0", 1),
        (GroupId(0, 1, 1), "block-1", 0),
    ]
    assert supply.dropped() == [(GroupId(0, 1, 0), "gone")]
    assert supply.dropped() == []


async def test_a_broken_group_is_dropped_for_good_in_the_end_and_replaced() -> None:
    pool = ScriptedPool(breaks(0, times=99))
    supply = supply_of(pool, slots=2)
    async with running(supply):
        taken = [(await supply.take(1))[0].position for _ in range(2)]
    assert taken == [1, 2]
    assert [group.attempt for group, _ in supply.dropped()] == list(range(MAX_ATTEMPTS))
    assert sum(call == [GroupId(0, 0, 3)] for call in pool.calls) == 0


async def test_lost_workers_count_less_against_a_group_than_what_breaks_by_itself() -> None:
    left = [MAX_LOSSES - 1, MAX_ATTEMPTS - 1]

    def script(admission: Admission) -> Outcome:
        for is_lost in (True, False):
            if left[not is_lost]:
                left[not is_lost] -= 1
                return Broken(admission.id, "gone", is_lost)
        return made(admission)

    supply = supply_of(ScriptedPool(script), slots=1)
    async with running(supply):
        group, _ = await supply.take(1)
    assert group == GroupId(0, 0, MAX_LOSSES + MAX_ATTEMPTS - 2)


async def test_a_group_that_takes_every_worker_along_is_dropped_in_the_end() -> None:
    def script(admission: Admission) -> Outcome:
        is_first = admission.id.position == 0
        return Broken(admission.id, "gone", is_lost=True) if is_first else made(admission)

    supply = supply_of(ScriptedPool(script), slots=1)
    async with running(supply):
        group, _ = await supply.take(1)
    assert group.position == 1
    assert len(supply.dropped()) == MAX_LOSSES


async def test_attempts_of_an_earlier_life_are_no_fault_of_the_group() -> None:
    supply = supply_of(ScriptedPool(breaks(0, times=2)), slots=1)
    state = supply.feed.state(0)
    supply.feed.restore(type(state)(0, 1, (GroupId(0, 0, 7),)))
    async with running(supply):
        group, _ = await supply.take(1)
    assert group == GroupId(0, 0, 10)


async def test_a_lost_worker_breaks_its_whole_block() -> None:
    deaths = [ray.exceptions.ActorDiedError()]

    def script(admission: Admission) -> Outcome:
        return deaths.pop() if deaths else made(admission)

    supply = supply_of(ScriptedPool(script), slots=2, groups_per_call=2, keeps_place=True)
    async with running(supply):
        taken = [(await supply.take(1))[0] for _ in range(2)]
    assert taken == [GroupId(0, 0, 1), GroupId(0, 1, 1)]
    (_, why), (_, other) = supply.dropped()
    assert why == other
    assert why.startswith("environment worker lost: ")


async def test_a_worker_s_bug_ends_the_supply() -> None:
    def script(admission: Admission) -> Outcome:
        return KeyError("a bug") if admission.id.position == 2 else made(admission)

    supply = supply_of(ScriptedPool(script))
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(supply.run(), 5)
    assert caught.group_contains(KeyError, match="a bug")


async def test_a_world_that_is_gone_does_not_use_up_the_data() -> None:
    pool = ScriptedPool(lambda admission: Broken(admission.id, "the engine is gone"))
    supply = supply_of(pool, slots=8)
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(supply.run(), 5)
    assert caught.group_contains(NothingIsMade, match="the engine is gone")
    assert len({call[0].position for call in pool.calls}) < MAX_DROPPED_IN_A_ROW + 8


@pytest.mark.parametrize(("num_lost", "is_healed"), [(100, True), (9, False)])
async def test_groups_that_all_went_with_workers_are_another_life_s_to_make(
    num_lost: int, is_healed: bool
) -> None:
    def script(admission: Admission) -> Outcome:
        return Broken(admission.id, "gone", is_lost=admission.id.position < num_lost)

    supply = supply_of(ScriptedPool(script), slots=8)
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(supply.run(), 5)
    assert caught.group_contains(NothingIsMade, match="gone")
    assert Rebirths(1).follows(caught.value, 0) == is_healed


async def test_many_broken_groups_are_no_end_of_the_world() -> None:
    def script(admission: Admission) -> Outcome:
        is_broken = admission.id.position % 4 != 0
        return Broken(admission.id, "gone") if is_broken else made(admission)

    supply = supply_of(ScriptedPool(script), slots=2)
    async with running(supply):
        for expected in range(0, 200, 4):
            group, _ = await asyncio.wait_for(supply.take(1), 5)
            assert group.position == expected
            await supply.free([group])
    assert len(supply.dropped()) > 3 * MAX_DROPPED_IN_A_ROW


async def test_slots_bound_what_is_under_way() -> None:
    pool = ScriptedPool(made)
    supply = supply_of(pool, slots=3)
    async with running(supply):
        await turns()
        assert len(pool.calls) == 3
        group, _ = await supply.take(1)
        await turns()
        assert len(pool.calls) == 3
        await supply.free([group])
        await turns()
        assert len(pool.calls) == 4


async def test_a_cancelled_take_loses_no_group() -> None:
    pool = ScriptedPool(made)
    supply = supply_of(pool, slots=2)
    waiting = asyncio.create_task(supply.take(1))
    await turns()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    async with running(supply):
        assert (await supply.take(1))[0] == GroupId(0, 0, 0)


async def test_a_state_wants_what_broke_to_be_written_first() -> None:
    supply = supply_of(ScriptedPool(breaks(0, times=1)), slots=1)
    async with running(supply):
        await supply.take(1)
        with pytest.raises(AssertionError, match="1 broken attempts are not in the ledger"):
            supply.state(0)
        supply.dropped()
        assert supply.state(0).outstanding == (GroupId(0, 0, 1),)
