"""A learner group that takes the place of another: what it starts from, replays, and may say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.muster import Member
from manta.actors.step_log import StepLog, StepsForgotten, Superseded
from manta.actors.step_work import Adopt, Fall, Saved, StartOrder, StepReport, StepWork, Stop
from manta.actors.stored_folder import WrittenFile
from manta.envs.records import WeightVersion
from manta.envs.step_records import Update
from tests.unit.actors.test_step_log import enlist, step_of, waiting, work

FIRST = StartOrder(step=4, incarnation=0, stage="rl", restore_from=None)


def order(step: int, incarnation: int) -> StartOrder:
    return StartOrder(step, incarnation, "rl", f"step={step}")


def report(step: int, incarnation: int = 0) -> StepReport:
    return StepReport(Update(WeightVersion(step, incarnation), {}, "hash"), (), {})


async def done(log: StepLog, steps: range, world_size: int = 2, incarnation: int = 0) -> None:
    for step in steps:
        for rank in range(world_size):
            await log.report(step, rank, incarnation, report(step, incarnation))


async def started(last: int, world_size: int = 2, save_to: str | None = None) -> StepLog:
    """Works 5 to `last` are there; a group has started from step 4 and finished all but the last,
    which is to be handed over and saved as all are."""
    log = StepLog(FIRST)
    for step in range(5, last + 1):
        await log.put(replace(work(step), save_to=save_to))
    await enlist(log, world_size)
    await done(log, range(4, last), world_size)
    return log


async def taken(log: StepLog, after: int, incarnation: int = 1) -> StepWork:
    found = await log.take(after, incarnation)
    assert isinstance(found, StepWork)
    return found


async def test_finished_steps_are_replayed_quietly_and_the_one_in_progress_in_full() -> None:
    log = await started(7)
    assert await log.restart(order(4, 1)) == 2
    again = await enlist(log, 1, "second")
    assert (again.step, again.incarnation, again.hand_over) == (4, 1, False)
    works = [await taken(log, after) for after in (4, 5, 6)]
    assert [w.plan.step for w in works] == [5, 6, 7]
    assert [w.hand_over for w in works] == [False, False, True]


async def test_a_group_that_fell_before_it_had_started_leaves_the_hand_over_to_the_next() -> None:
    log = StepLog(FIRST)
    await enlist(log, 2)
    await log.report(4, 0, 0, report(4))
    start = await waiting(log.result(4))
    assert await log.restart(order(4, 1)) == 0
    assert (await enlist(log, 1, "second")).hand_over
    await log.report(4, 0, 1, report(4, 1))
    assert (await start)[0].update.version == WeightVersion(4, 1)


async def test_reports_that_were_whole_stay_and_others_come_from_the_new_group() -> None:
    log = await started(6)
    await log.report(6, 1, 0, report(6))
    newest = await waiting(log.result(6))
    await log.restart(order(4, 1))
    await enlist(log, 2, "second")
    assert (await log.result(5))[0].update.version == WeightVersion(5, 0)
    await done(log, range(4, 6), incarnation=1)
    assert (await log.result(5))[0].update.version == WeightVersion(5, 0), "said once"
    await log.report(6, 0, 1, report(6, 1))
    assert not newest.done(), "the other rank's report is of the group before"
    await log.report(6, 1, 1, report(6, 1))
    assert {r.update.version for r in (await newest).values()} == {WeightVersion(6, 1)}


async def test_late_words_of_a_rank_that_was_replaced_never_count() -> None:
    log = await started(6, save_to="folder")
    await log.saved(6, 0, 0, Saved((), "of the first group"))
    await log.restart(order(4, 1))
    await enlist(log, 2, "second")
    newest, saved = await waiting(log.result(6)), await waiting(log.all_saved(6))
    await done(log, range(4, 7), incarnation=0)
    for rank in (0, 1):
        await log.saved(6, rank, 0, Saved((), "of the first group"))
    assert not newest.done() and not saved.done()
    with pytest.raises(Superseded):
        await log.take(4, 0)
    await done(log, range(4, 7), incarnation=1)
    assert (await newest)[1].update.version == WeightVersion(6, 1)
    for rank in (0, 1):
        await log.saved(6, rank, 1, Saved(()))
    assert await saved == (Saved(()), Saved(()))


async def test_a_rank_that_waits_for_work_is_told_that_it_was_replaced() -> None:
    log = await started(5)
    waits = await waiting(log.take(5, 0))
    await log.restart(order(4, 1))
    with pytest.raises(Superseded):
        await waits


async def test_what_all_ranks_have_written_is_not_written_again() -> None:
    log = await started(6, save_to="folder")
    files = Saved((WrittenFile("model.safetensors", 7, "hash"),))
    for rank in (0, 1):
        await log.saved(5, rank, 0, files)
    await log.saved(6, 0, 0, files)
    await log.restart(order(4, 1))
    await enlist(log, 2, "second")
    assert [(await taken(log, after)).save_to for after in (4, 5)] == [None, "folder"]
    assert await log.all_saved(5) == (files, files)
    await log.saved(5, 0, 1, Saved((), "again"))
    assert await log.all_saved(5) == (files, files)


async def test_steps_stay_until_they_are_covered_and_the_present_group_has_passed_them() -> None:
    log = await started(8)
    await log.restart(order(4, 1))
    await enlist(log, 2, "second")
    log.forget(6)
    assert step_of(await log.take(4, 1)) == 5
    await done(log, range(4, 6), incarnation=1)
    assert step_of(await log.take(4, 1)) == 6, "5 is covered and passed"
    with pytest.raises(StepsForgotten, match="cannot go on from step 4: the steps up to 5"):
        await log.restart(order(4, 2))
    assert await log.restart(order(6, 2)) == 1
    assert step_of(await log.take(6, 2)) == 7


async def test_a_checkpoint_of_another_life_is_not_written_over() -> None:
    log = await started(7, save_to="folder")
    await log.restart(order(4, 1))
    log.forget(6)
    assert (await taken(log, 5)).save_to is None
    assert (await taken(log, 6)).save_to == "folder"


async def test_an_order_is_for_one_group() -> None:
    log = await started(5)
    late = await waiting(log.enlist("second", 2, Member(0, 7, "here", None)))
    assert (await log.fall(0)).kind == "outnumbered"
    await log.restart(order(4, 1))
    assert (await late).incarnation == 1


async def test_a_fall_says_how_far_any_group_has_got() -> None:
    log = await started(7)
    fall = await waiting(log.fall(0))
    await log.fell(Fall("died", ("rank 0: killed",)))
    assert await fall == Fall("died", ("rank 0: killed",), finished=6)


def adopt(step: int, save_to: str | None = None) -> Adopt:
    return Adopt(1, "both", None, WeightVersion(step, 0), save_to)  # type: ignore[arg-type]


async def adopting(log: StepLog, what: Adopt, ranks: tuple[int, ...]) -> None:
    await waiting(log.adopt(what))
    for rank in ranks:
        await log.adopted(1, rank, 0, report(what.version.step))


@pytest.mark.parametrize("ranks", [(0,), (0, 1)])
async def test_weights_that_no_checkpoint_has_are_taken_first(ranks: tuple[int, ...]) -> None:
    """Those that all ranks of the group before had taken are not handed over again."""
    log = await started(6)
    await done(log, range(6, 7))
    await adopting(log, adopt(6), ranks)
    await log.restart(order(4, 1))
    await enlist(log, 2, "second")
    first = await log.take(4, 1)
    assert isinstance(first, Adopt)
    assert (first.version, first.hand_over) == (WeightVersion(6, 0), len(ranks) == 1)
    for rank in (0, 1):
        await log.adopted(1, rank, 0, report(6))
    nothing = await waiting(log.take(6, 1, adopted=1))
    for rank in (0, 1):
        await log.adopted(1, rank, 1, report(6, 1))
    await log.put(work(7))
    assert step_of(await nothing) == 7


async def test_weights_of_the_step_of_a_checkpoint_came_after_it_unless_it_was_made_of_them() -> (
    None
):
    for save_to, is_taken in ((None, True), ("folder", False)):
        log = await started(6)
        await done(log, range(6, 7))
        await adopting(log, adopt(6, save_to), (0, 1))
        await log.restart(order(6, 1))
        await log.put(work(7))
        await enlist(log, 2, "second")
        assert isinstance(await log.take(6, 1), Adopt) == is_taken
        later = await started(6)
        await done(later, range(6, 7))
        await adopting(later, adopt(6, save_to), (0, 1))
        await later.put(work(7))
        await later.restart(order(7, 1))
        await later.put(work(8))
        assert step_of(await later.take(7, 1)) == 8


async def test_a_stop_stays_and_what_was_saved_for_it_is_not_saved_again() -> None:
    log = await started(6)
    await done(log, range(6, 7))
    await log.stop(Stop("folder"))
    await log.saved(6, 0, 0, Saved(()))
    await log.restart(order(4, 1))
    await enlist(log, 1, "second")
    assert await log.take(6, 1) == Stop("folder")
    await log.saved(6, 0, 1, Saved(()))
    assert await log.take(6, 1) == Stop()


async def test_a_group_that_is_dismissed_leaves_and_the_next_goes_on_where_it_stood() -> None:
    log = await started(6)
    await done(log, range(6, 7))
    waits = await waiting(log.take(6, 0))
    await log.dismiss()
    assert await waits == Stop()
    assert await log.restart(order(6, 1)) == 0
    assert not (await enlist(log, 3, "second")).hand_over
    waits = await waiting(log.take(6, 1))
    await log.put(work(7))
    assert step_of(await waits) == 7


async def test_orders_to_hand_over_are_for_those_who_hold_the_weights() -> None:
    log = await started(6)
    handing = await waiting(log.hand_over(HandOver(1, WeightVersion(5, 0), None)))
    await log.handed(1, 0, HandedOver())
    await log.restart(order(4, 1))
    await enlist(log, 1, "second")
    assert step_of(await log.take(4, 1)) == 5
    assert not handing.done()
    handing.cancel()
