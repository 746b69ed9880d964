"""The check of the end-to-end tests that nothing is lost or repeated: it sees each mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manta.envs.records import GroupId
from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.attempts import MAX_ATTEMPTS
from manta.orchestrator.carrying_feed import CarryingFeed
from manta.orchestrator.curriculum import CurriculumState, KeptOrder
from manta.orchestrator.feed import Feed, FeedState
from manta.orchestrator.ledger import Entry, Outcome
from manta.orchestrator.racing_feed import RacingFeed
from manta.orchestrator.simulation import virtual_clock
from manta.orchestrator.supply import Finished
from tests.e2e.place_account import problems
from tests.unit.orchestrator.simulated_stage import NUM_TASKS, SimulatedStage, order

STEPS = 25


@pytest.mark.parametrize(
    "feed",
    [
        Feed(order(), 4, keeps_place=True),
        Feed(order(), 12, keeps_place=False),
        RacingFeed(order(), 4, 7),
        CarryingFeed(order(), 4, 6, 1),
    ],
    ids=["on-policy", "stale", "racing", "carrying"],
)
def test_every_mistake_in_an_account_is_found(tmp_path: Path, feed: Feed[Finished]) -> None:
    stage = SimulatedStage(tmp_path, 1, feed, 4, AgePolicy(0, "mask_tokens"), steps=STEPS)
    virtual_clock.run(stage.run())
    entries, state = stage.entries, feed.state(STEPS)
    assert state.epoch > 0 and state.outstanding
    assert {"trained", "filtered", "dropped"} == {entry.outcome for entry in entries}

    def found(entries: list[Entry], state: FeedState) -> list[str]:
        return problems(entries, state, NUM_TASKS, given_up_after=MAX_ATTEMPTS)

    assert not found(entries, state)
    for number, entry in enumerate(entries):
        assert found(entries[:number] + entries[number + 1 :], state), f"lost: {entry}"
        assert found([*entries, entry], state), f"repeated: {entry}"
    for group in state.outstanding:
        others = tuple(each for each in state.outstanding if each != group)
        assert found(entries, replace(state, outstanding=others)), f"lost: {group}"
        twice = (*state.outstanding, group)
        assert found(entries, replace(state, outstanding=twice)), f"repeated: {group}"
    for position in (state.position - 1, state.position + 1):
        assert found(entries, replace(state, position=position))


def entry(position: int, outcome: Outcome, epoch: int = 0, attempt: int = 0) -> Entry:
    return Entry("rl", GroupId(epoch, position, attempt), outcome, 1, "the world broke")


def test_a_dropped_attempt_is_no_outcome() -> None:
    state = FeedState(0, 1, ())
    dropped = [entry(0, "dropped", attempt=attempt) for attempt in range(3)]
    [told] = problems(dropped, state, 5)
    assert told.startswith("(0, 0) was dropped and not admitted again")
    assert not problems([*dropped, entry(0, "trained", attempt=3)], state, 5)
    assert not problems(dropped, replace(state, outstanding=(GroupId(0, 0, 3),)), 5)
    assert problems(dropped, state, 5, given_up_after=4)
    overtaken = replace(dropped[0], reason="overtaken")
    assert problems([overtaken, *dropped[1:]], state, 5, given_up_after=3)


def test_what_an_epoch_leaves_out_counts_from_its_start() -> None:
    curriculum = CurriculumState(4, "", "", "", "", (KeptOrder(1, 3, ""),))
    state = FeedState(1, 2, (), curriculum=curriculum)
    first = [entry(position, "trained") for position in range(4)]
    second = [entry(3, "skipped", 1), entry(0, "trained", 1), entry(1, "filtered", 1)]
    assert not problems([*first, *second], state, 4)
    assert problems([*first, *second[1:]], state, 4) == ["(1, 3) has no outcome"]
    over = replace(state, position=3)
    assert problems([*first, *second], over, 4) == ["(1, 2) has no outcome"]
