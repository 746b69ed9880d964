"""What follows when a learner group falls, and where the next one starts from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from manta.actors.learner_falls import GroupsLost, fall_of
from manta.actors.step_work import Fall, StartOrder
from manta.actors.stored_folder import StoredFolder
from manta.actors.worker_range import RankRange
from manta.envs.records import Json
from manta.orchestrator import learner_group
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.learner_group import (
    LearnerFailed,
    LearnerGroup,
    LearnerLost,
    Restarts,
    judge,
)
from manta.orchestrator.learner_starts import LearnerStarts
from manta.orchestrator.lives import Lives
from manta.orchestrator.metrics import LEARNER_REGROUPS
from manta.orchestrator.rebirth import Rebirths
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.run_state import RunState
from manta.orchestrator.wait import DeadlineMissed, Waits
from tests.trained_run import TrainedRun
from tests.unit.orchestrator.tiny_run import load


class HealthCheckFailed(Exception):
    """As Ray Train tells of a rank whose actor died."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("a check failed")
        self.health_check_failure = failure


DEAD = HealthCheckFailed(ray.exceptions.RayActorError())
PEER = RuntimeError("Connection closed by peer\nsomewhere in gloo")


def test_a_rank_that_died_takes_its_peers_with_it() -> None:
    fall = fall_of({1: PEER, 0: DEAD})
    assert fall.kind == "died"
    assert fall.causes == (
        "rank 1: RuntimeError: Connection closed by peer somewhere in gloo",
        "rank 0: its process ended",
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("learner.backend cannot"), "refused"),
        (GroupsLost("the groups of step 3"), "lost"),
        (ray.exceptions.RayActorError(), "lost"),
    ],
)
def test_what_another_group_would_meet_again_is_told_apart(error: Exception, kind: str) -> None:
    assert fall_of({0: error}).kind == kind
    assert fall_of({0: PEER, 1: error}).kind == kind


def test_a_group_that_died_is_followed_so_many_times_in_a_row() -> None:
    falls = [Fall("died", (f"rank 0: cause {i}",)) for i in range(3)]
    for number in (1, 2):
        judge(falls[:number], most=2)
    with pytest.raises(
        LearnerFailed, match=r"3 times in a row.*cause 0; .*cause 1; .*cause 2"
    ) as e:
        judge(falls, most=2)
    assert not isinstance(e.value, LearnerLost), "another life would meet the same"


class OneRank:
    """Ranks that leave when they are told to, where the next start from, and what is said of it."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(ranks=RankRange(1, 1))
        self.incarnation = 0
        self.told: asyncio.Queue[Mapping[str, Json]] = asyncio.Queue()
        self._falls: asyncio.Queue[Fall] = asyncio.Queue()

    def fit(self, *_: object) -> OneRank:
        self.ended: asyncio.Future[Fall | None] = asyncio.get_running_loop().create_future()
        return self

    async def dismiss(self) -> None:
        self.ended.set_result(None)

    async def fell(self, fall: Fall) -> None:
        self._falls.put_nowait(fall)

    async def fall(self, number: int) -> Fall:
        return await self._falls.get()

    async def ask(self, what: str, ask: Callable[[], StartOrder]) -> StartOrder:
        return ask()

    def again(self) -> StartOrder:
        self.incarnation += 1
        return StartOrder(1, self.incarnation, "", None)

    def has_read(self) -> None:
        pass

    async def restart(self, order: StartOrder) -> int:
        return 0

    async def started(self, incarnation: int) -> None:
        pass

    def event(self, kind: str, facts: Mapping[str, Json]) -> None:
        self.told.put_nowait({"kind": kind, **facts})


async def test_ranks_that_were_sent_away_are_followed_and_nothing_more_is_wished_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ranks: Any = OneRank()
    monkeypatch.setattr(learner_group, "LearnerFit", ranks.fit)
    restarts = Restarts(ranks, ranks, 0, ranks.event, start_seconds=9)
    group = LearnerGroup(ranks, {}, tmp_path, ranks, restarts)
    group.wish_of(0, "nodes of its ranks are leaving")
    why = group.wish
    # What is seen next may be another thing: it is sent away for what it wished
    group.wish_of(0, "")
    await asyncio.sleep(0)
    await group.regroup(why)
    # A look that began before then
    group.wish_of(0, "nodes of its ranks are leaving")
    assert group.wish == ""
    told = await ranks.told.get()
    assert (told["kind"], told["why"]) == (LEARNER_REGROUPS, "nodes of its ranks are leaving")
    group.wish_of(0, "nodes of its ranks are leaving")
    assert group.wish == ""
    group.wish_of(1, "there is place for 2 ranks")
    assert group.wish == "there is place for 2 ranks"
    assert not group.has_ended
    await group.close()


def test_lost_groups_end_the_life_and_refusals_the_run() -> None:
    with pytest.raises(LearnerLost, match="step 3 cannot be fetched"):
        judge([Fall("lost", ("rank 0: step 3 cannot be fetched",))], most=3)
    with pytest.raises(LearnerFailed) as refused:
        judge([Fall("refused", ("rank 0: ValueError",))], most=3)
    assert not isinstance(refused.value, LearnerLost)


def test_a_group_starts_from_the_newest_whole_checkpoint_under_its_own_number(
    tmp_path: Path,
) -> None:
    run = TrainedRun(tmp_path, (2, 4))
    lives = Lives(RunDirectory(run.root))
    lives.begin(0)
    starts = LearnerStarts(load(tmp_path), Checkpoints(run.place, keep=9), lives)
    order = starts.again()
    assert (order.step, order.incarnation, order.stage) == (4, 1, "rl")
    assert order.restore_from == run.place.under("step=000004").under("learner").location
    (run.root / "checkpoints/step=000004/learner/model.safetensors").write_text("damaged")
    assert starts.again().step == 2
    assert lives.incarnation == 2


def test_what_a_group_is_to_read_stays_until_it_has(tmp_path: Path) -> None:
    """`keep: 1`: a checkpoint that is committed meanwhile does not take the one before with it."""
    run = TrainedRun(tmp_path, (2,))
    lives = Lives(RunDirectory(run.root))
    lives.begin(0)
    checkpoints = Checkpoints(run.place, keep=1)
    starts = LearnerStarts(load(tmp_path), checkpoints, lives)
    order = starts.again()
    for step in (4, 6):
        checkpoints.begin(step)
        checkpoints.commit(RunState(step, "rl", step, False, None, 0, 0, 0), ())
    assert order.restore_from is not None
    assert StoredFolder.at(order.restore_from).names()
    assert checkpoints.steps() == [2, 4, 6]
    starts.has_read()
    checkpoints.begin(8)
    checkpoints.commit(RunState(8, "rl", 8, False, None, 0, 0, 0), ())
    assert checkpoints.steps() == [8]


def test_a_run_without_a_checkpoint_starts_from_its_initial_weights(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path, ())
    lives = Lives(RunDirectory(run.root))
    order = LearnerStarts(load(tmp_path), Checkpoints(run.place, keep=9), lives).again()
    assert (order.step, order.incarnation, order.restore_from) == (0, 0, None)
    assert order.stage == load(tmp_path).stages[0].name


DIED = ray.exceptions.RayActorError()


def test_lives_follow_one_another_until_one_in_a_row_too_many() -> None:
    rebirths = Rebirths(2)
    assert [rebirths.follows(DIED, 4) for _ in range(3)] == [True, True, False]
    assert rebirths.follows(DIED, 6), "a checkpoint was committed in between"
    assert not Rebirths(0).follows(DIED, 0)


async def test_a_worker_that_hangs_is_left_behind_but_a_deadline_too_short_ends_the_run() -> None:
    """A rank in a deadlock still gives signs of life: the wait for it is all that tells."""
    rebirths, ends = Rebirths(2), []
    for _ in range(3):
        with pytest.raises(DeadlineMissed) as missed:
            await Waits().wait("the learner ranks to finish step 5", asyncio.Event().wait(), 0.001)
        ends.append(rebirths.follows(ExceptionGroup("tasks", [missed.value]), 4))
    assert ends == [True, True, False]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a mistake"),
        LearnerFailed("3 times in a row"),
        ExceptionGroup("tasks", [DIED, ValueError("a mistake")]),
    ],
)
def test_what_another_life_would_meet_again_ends_the_run(error: Exception) -> None:
    assert not Rebirths(2).follows(error, 0)


def test_every_error_of_a_group_of_them_must_be_one_that_heals() -> None:
    errors = ExceptionGroup("tasks", [DIED, ExceptionGroup("more", [LearnerLost("gone")])])
    assert Rebirths(1).follows(errors, 0)
