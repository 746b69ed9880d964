"""The feed against a model of it: any world, any order of events, a crash at any point."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manta.envs.records import GroupId
from manta.envs.sources.order import EpochOrder
from manta.orchestrator.feed import Feed, FeedState, TaskOrder

Place = tuple[int, int]


class World(RuleBasedStateMachine):
    """Engines that finish, break and die in any order, and a loop that takes, filters, trains and
    publishes. `line` is the order of admission as the model sees it."""

    @initialize(
        staleness=st.integers(0, 3),
        prompts=st.integers(1, 4),
        length=st.integers(1, 9),
        keeps_place=st.booleans(),
    )
    def start(self, staleness: int, prompts: int, length: int, keeps_place: bool) -> None:
        self.staleness, self.prompts, self.keeps_place = staleness, prompts, keeps_place
        self.slots = (staleness + 1) * prompts
        self.length = length
        self.settled: list[Place] = []
        self.tasks: dict[Place, int] = {}
        self.places: dict[int, int] = {}
        self.published = 0
        self.life(None)
        self.checkpoint()

    def life(self, state: FeedState | None) -> None:
        """A driver starts: nothing is under way."""
        self.order = self.order_from(state)
        self.feed: Feed[str] = Feed(self.order, self.slots, self.keeps_place)
        if state is not None:
            self.feed.restore(state)
        self.line: list[GroupId] = []
        self.ready: set[GroupId] = set()
        self.admitted_at: dict[GroupId, int] = {}
        self.taken: list[GroupId] = []
        self.filtered: list[GroupId] = []
        self.admit()

    def order_from(self, state: FeedState | None) -> TaskOrder:
        return EpochOrder(self.length, seed=1)

    def note(self, step: int) -> None:
        """What `step` took is about to be forgotten."""

    def state(self) -> FeedState:
        return self.feed.state(self.published)

    def admit(self) -> None:
        for admission in self.feed.admit():
            group = admission.id
            assert group not in self.admitted_at
            assert admission.index == self.order.index(group.epoch, group.position)
            self.places[group.epoch] = self.order.num_places(group.epoch)
            known = self.tasks.setdefault(group[:2], admission.index)
            assert known == admission.index, "another task stands at the place of the first attempt"
            self.admitted_at[group] = self.published
            self.line.append(group)

    @property
    def in_flight(self) -> list[GroupId]:
        return [group for group in self.line if group not in self.ready]

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self.in_flight))
        self.feed.finish(group, str(group))
        self.ready.add(group)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self.in_flight))
        again = self.feed.retry(group).id
        assert again == group._replace(attempt=group.attempt + 1)
        self.admitted_at[again] = self.published
        if self.keeps_place:
            self.line[self.line.index(group)] = again
        else:
            self.line.remove(group)
            self.line.append(again)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self.in_flight))
        self.feed.drop(group)
        self.line.remove(group)
        self.settled.append(group[:2])
        self.admit()

    @rule(is_filtered=st.booleans())
    def take(self, is_filtered: bool) -> None:
        step = self.published + 1
        taken = self.feed.take(step)
        if not self.line or self.line[0] not in self.ready:
            assert taken is None
            return
        assert taken == (self.line[0], str(self.line[0]))
        group = self.line.pop(0)
        assert self.published - self.admitted_at[group] <= self.staleness
        if is_filtered:
            self.filtered.append(group)
            self.feed.free([group])
            self.admit()
            return
        self.taken.append(group)
        if len(self.taken) == self.prompts:
            self.train(step)

    def train(self, step: int) -> None:
        self.published = step
        self.settled += [group[:2] for group in (*self.filtered, *self.taken)]
        self.feed.settle(step)
        self.note(step)
        self.feed.free(self.taken)
        self.taken, self.filtered = [], []
        self.admit()

    @rule()
    def checkpoint(self) -> None:
        self.saved = (self.state(), list(self.settled), dict(self.tasks), self.published)

    @rule()
    def crash(self) -> None:
        state, settled, tasks, self.published = self.saved
        self.settled, self.tasks = list(settled), dict(tasks)
        self.life(state)

    @invariant()
    def every_slot_is_taken_and_no_more(self) -> None:
        assert len(self.line) + len(self.taken) == self.slots
        assert self.feed.num_ready == len(self.ready & set(self.line))
        assert self.feed.num_in_flight == len(self.in_flight)

    @invariant()
    def nothing_is_settled_twice_or_lost(self) -> None:
        state = self.feed.state(self.published)
        outstanding = [group[:2] for group in state.outstanding]
        places = sorted(self.settled + outstanding)
        begun = {**{e: self.places[e] for e in range(state.epoch)}, state.epoch: state.position}
        assert places == [(epoch, place) for epoch in begun for place in range(begun[epoch])]

    @invariant()
    def no_task_comes_twice_in_an_epoch(self) -> None:
        of_epoch = Counter((epoch, task) for (epoch, _), task in self.tasks.items())
        assert set(of_epoch.values()) <= {1}

    def teardown(self) -> None:
        """If everything that is admitted finishes, every step fills."""
        if not hasattr(self, "feed"):
            return
        for _ in range(3):
            goal = self.published + 1
            for _ in range(self.slots):
                for group in self.in_flight:
                    self.feed.finish(group, str(group))
                    self.ready.add(group)
                if self.published < goal:
                    self.take(is_filtered=False)
            assert self.published == goal


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)


def feed_of(length: int, slots: int, keeps_place: bool = False) -> Feed[str]:
    return Feed(EpochOrder(length, seed=0, shuffle=False), slots, keeps_place)


@pytest.mark.parametrize(("keeps_place", "expected"), [(True, [0, 1, 2]), (False, [0, 2, 1])])
def test_a_retried_group_keeps_its_place_or_goes_to_the_tail(
    keeps_place: bool, expected: list[int]
) -> None:
    feed = feed_of(9, 3, keeps_place)
    first, second, third = (admission.id for admission in feed.admit())
    again = feed.retry(second).id
    assert again == GroupId(0, 1, 1)
    for group in (first, again, third):
        feed.finish(group, str(group))
    taken = [feed.take(1) for _ in range(3)]
    assert [group.position for group, _ in filter(None, taken)] == expected
    assert feed.take(1) is None


def test_epochs_follow_each_other() -> None:
    admissions = feed_of(2, 5).admit()
    assert [tuple(a.id) for a in admissions] == [
        (0, 0, 0),
        (0, 1, 0),
        (1, 0, 0),
        (1, 1, 0),
        (2, 0, 0),
    ]
    assert [a.index for a in admissions] == [0, 1, 0, 1, 0]


def test_what_was_consumed_for_a_step_that_never_came_is_outstanding_first() -> None:
    feed = feed_of(9, 4)
    groups = [admission.id for admission in feed.admit()]
    for group in groups[:3]:
        feed.finish(group, "ready")
    feed.take(1)
    feed.settle(1)
    feed.free(groups[:1])
    feed.take(2)
    feed.free(groups[1:2])  # filtered while step 2 was collected
    feed.take(2)
    assert feed.state(1).outstanding == tuple(groups[1:])
    assert feed.state(2).outstanding == tuple(groups[3:])
    again = feed_of(9, 4)
    again.restore(feed.state(1))
    expected = [GroupId(0, 1, 1), GroupId(0, 2, 1), GroupId(0, 3, 1), GroupId(0, 4, 0)]
    assert [admission.id for admission in again.admit()] == expected


def test_a_renewed_group_is_made_again_in_its_place() -> None:
    feed = feed_of(9, 3)
    first, second, third = (admission.id for admission in feed.admit())
    for group in (first, second):
        feed.finish(group, str(group))
    assert [group for group, _ in feed.ready()] == [first, second]
    again = feed.renew(first)
    assert again.id == GroupId(0, 0, 1) and again.index == 0
    assert feed.take(1) is None, "the step waits for it"
    assert feed.admit() == [], "in the slot that it has"
    feed.finish(again.id, "again")
    assert feed.take(1) == (again.id, "again")
    assert feed.has(third) and not feed.has(again.id)


def test_finishing_twice_is_a_bug() -> None:
    feed = feed_of(9, 1)
    [admission] = feed.admit()
    feed.finish(admission.id, "ready")
    with pytest.raises(AssertionError, match="finished twice"):
        feed.finish(admission.id, "ready")
    with pytest.raises(AssertionError, match="failed after it finished"):
        feed.retry(admission.id)


def test_a_feed_that_ends_hands_every_place_out_once_also_over_a_resume() -> None:
    order = EpochOrder(5, seed=1, shuffle=False)
    feed: Feed[str] = Feed(order, 2, False, num_epochs=1)
    indices: list[int] = []
    for step in (1, 2, 3, 4):
        for admission in feed.admit():
            indices.append(admission.index)
            feed.finish(admission.id, "ready")
        taken = feed.take(step)
        assert taken is not None and not feed.is_exhausted
        feed.free([taken[0]])
        feed.settle(step)
    state = feed.state(4)
    resumed: Feed[str] = Feed(order, 2, False, num_epochs=1)
    resumed.restore(state)
    assert not resumed.is_exhausted
    [last] = resumed.admit()
    resumed.finish(last.id, "ready")
    assert resumed.take(5) is not None and resumed.is_exhausted
    assert (indices, last.index) == ([0, 1, 2, 3, 4], 4)
