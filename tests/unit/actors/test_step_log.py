from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.muster import Member
from manta.actors.step_log import StepLog, Superseded
from manta.actors.step_work import Adopt, Saved, StartOrder, StepReport, StepWork, Stop
from manta.actors.stored_folder import WrittenFile
from manta.envs.records import WeightVersion
from manta.envs.step_records import Update
from tests.tiny import groups_of, plan_of

T = TypeVar("T")
ORDER = StartOrder(step=4, incarnation=2, stage="rl", restore_from=None)


def work(step: int) -> StepWork:
    plan = replace(plan_of(groups_of((2,))), step=step)
    return StepWork("rl", plan, (), (), 0.1)


def report(step: int, rank: int) -> StepReport:
    return StepReport(Update(WeightVersion(step, 2), {"rank": float(rank)}, ""), (), {})


async def waiting(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """The call as a task that has nothing to return yet."""
    task = asyncio.create_task(call)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def enlist(log: StepLog, world_size: int, group: str = "first") -> StartOrder:
    """All ranks of `group`, one after the other."""
    for rank in range(world_size):
        order = await log.enlist(group, world_size, Member(rank, 100 + rank, "here", None))
    return order


def step_of(taken: StepWork | HandOver | Stop) -> int:
    assert isinstance(taken, StepWork)
    return taken.plan.step


async def test_ranks_learn_where_to_start() -> None:
    assert await enlist(StepLog(ORDER), 2) == ORDER


async def test_take_waits_for_the_step() -> None:
    log = StepLog(ORDER)
    first = await waiting(log.take(4, 2))
    second = await waiting(log.take(4, 2))
    await log.put(work(5))
    assert step_of(await first) == step_of(await second) == 5


async def test_take_is_an_idempotent_read() -> None:
    log = StepLog(ORDER)
    for step in (5, 6, 7):
        await log.put(work(step))
    taken = [step_of(await log.take(after, 2)) for after in (4, 5, 6, 4, 4, 6)]
    assert taken == [5, 6, 7, 5, 5, 7]
    assert await log.take(5, 2) is await log.take(5, 2)


async def test_steps_of_stages_that_do_not_train_are_gaps() -> None:
    log = StepLog(ORDER)
    for step in (5, 9):
        await log.put(work(step))
    assert step_of(await log.take(5, 2)) == 9
    late = await waiting(log.take(9, 2))
    await log.put(work(30))
    assert step_of(await late) == 30


async def test_stop_comes_after_the_steps_that_are_left() -> None:
    log = StepLog(ORDER)
    await log.put(work(5))
    stop = Stop(save_to="folder")
    late = await waiting(log.take(5, 2))
    await log.stop(stop)
    assert await late == stop
    assert step_of(await log.take(4, 2)) == 5
    assert await log.take(5, 2) == stop


@pytest.mark.parametrize("incarnation", [1, 3])
async def test_another_incarnation_is_refused(incarnation: int) -> None:
    log = StepLog(ORDER)
    await log.put(work(5))
    with pytest.raises(Superseded, match=rf"incarnation {incarnation} is no longer the current"):
        await log.take(4, incarnation)


async def test_a_result_waits_for_all_ranks() -> None:
    log = StepLog(ORDER)
    result = await waiting(log.result(5))
    await enlist(log, 3)
    for rank in (2, 0):
        await log.report(5, rank, 2, report(5, rank))
        assert not result.done()
    await log.report(6, 1, 2, report(6, 1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not result.done()
    await log.report(5, 1, 2, report(5, 1))
    reports = await result
    assert [reports[rank].update.metrics["rank"] for rank in range(3)] == [0, 1, 2]


async def test_a_checkpoint_is_whole_when_all_ranks_have_said_so() -> None:
    log = StepLog(ORDER)
    await enlist(log, 2)
    files = (WrittenFile("model-00002-of-00002.safetensors", 7, "hash"),)
    whole = await waiting(log.all_saved(5))
    await log.saved(5, 1, 2, Saved(files))
    await log.saved(6, 0, 2, Saved(()))
    await asyncio.sleep(0)
    assert not whole.done()
    await log.saved(5, 0, 2, Saved((), "full"))
    assert await whole == (Saved((), "full"), Saved(files))
    log.forget(5)
    assert not (await waiting(log.all_saved(5))).done()


async def test_what_a_checkpoint_covers_is_forgotten() -> None:
    log = StepLog(ORDER)
    await enlist(log, 1)
    for step in (5, 6, 7):
        await log.put(work(step))
        await log.report(step, 0, 2, report(step, 0))
    log.forget(6)
    assert step_of(await log.take(4, 2)) == 7
    assert list(await log.result(7)) == [0]
    (await waiting(log.result(6))).cancel()


async def test_a_group_has_started_once_all_its_ranks_have_read_what_they_start_from() -> None:
    log = StepLog(ORDER)
    await enlist(log, 2)
    for rank in (0, 1):
        await log.report(4, rank, 2, report(4, rank))
    await log.started(2)
    await log.restart(replace(ORDER, incarnation=3))
    await log.started(2)
    started = await waiting(log.started(3))
    await enlist(log, 2, "second")
    await log.report(4, 0, 3, report(4, 0))
    await log.report(5, 1, 2, report(5, 1))
    assert not started.done()
    await log.report(4, 1, 3, report(4, 1))
    await started


def order(number: int, step: int = 5, incarnation: int = 2) -> HandOver:
    return HandOver(number, WeightVersion(step, incarnation), ())


async def test_an_order_to_hand_over_comes_before_the_next_step_and_once_to_each_rank() -> None:
    log = StepLog(ORDER)
    await enlist(log, 2)
    waits = await waiting(log.take(5, 2))
    handing = await waiting(log.hand_over(order(1)))
    assert await waits == order(1)
    await log.put(work(6))
    assert await log.take(5, 2) == order(1), "the other rank has yet to see it"
    await log.handed(1, 1, HandedOver())
    assert not handing.done()
    await log.handed(1, 0, HandedOver(num_bytes=7))
    assert await handing == HandedOver(num_bytes=7)
    assert step_of(await log.take(5, 2, handed=1)) == 6


async def test_answers_to_an_earlier_order_do_not_count() -> None:
    log = StepLog(ORDER)
    await enlist(log, 1)
    await waiting(log.hand_over(order(1)))
    second = await waiting(log.hand_over(order(2)))
    await log.handed(1, 0, HandedOver(failure="late"))
    assert not second.done()
    assert await log.take(5, 2, handed=1) == order(2)
    await log.handed(2, 0, HandedOver())
    assert await second == HandedOver()


async def test_an_order_about_another_life_s_weights_is_none() -> None:
    log = StepLog(ORDER)
    await enlist(log, 1)
    await waiting(log.hand_over(order(1, incarnation=1)))
    waits = await waiting(log.take(5, 2))
    await log.put(work(6))
    assert step_of(await waits) == 6


def adoption(number: int) -> Adopt:
    return Adopt(number, "both", None, WeightVersion(5, 2))  # type: ignore[arg-type]


async def test_other_weights_are_taken_by_every_rank_once() -> None:
    log = StepLog(ORDER)
    await enlist(log, 2)
    waits = await waiting(log.take(5, 2))
    adopted = await waiting(log.adopt(adoption(1)))
    assert await waits == adoption(1)
    assert await log.take(5, 2) == adoption(1), "the other rank has yet to see it"
    await log.adopted(1, 1, 2, report(5, 1))
    await waiting(log.take(5, 2, adopted=1))
    await log.adopted(1, 0, 2, report(5, 0))
    assert {rank: each.update.metrics["rank"] for rank, each in (await adopted).items()} == {
        0: 0.0,
        1: 1.0,
    }
    await log.put(work(6))
    assert step_of(await log.take(5, 2, adopted=1)) == 6
    again = await waiting(log.adopt(adoption(2)))
    await log.adopted(1, 0, 2, report(5, 0))
    assert await log.take(6, 2, adopted=1) == adoption(2)
    for rank in (0, 1):
        await log.adopted(2, rank, 2, report(6, rank))
    assert sorted(await again) == [0, 1]
