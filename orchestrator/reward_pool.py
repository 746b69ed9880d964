"""The reward workers, from the driver's side."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence

import ray
from ray.actor import ActorHandle

from manta.actors.lanes import Lane
from manta.actors.mailbox import Place
from manta.actors.reward import RewardWorker
from manta.actors.step_scores import FinalScores
from manta.envs.packing import Block
from manta.orchestrator.living import Living
from manta.orchestrator.pools import ask_each, start
from manta.orchestrator.scorer_pool import ScorerPool
from manta.orchestrator.seats import Seats


class RewardPool:
    """Reward workers, which call the scorers that are there. While `seats` run, one that dies is
    replaced by one that has opened the same lanes; `tell` is awaited whenever others can be
    called."""

    role = "reward worker"

    def __init__(self, workers: int, cpus: float, scorers: ScorerPool) -> None:
        self._cpus, self._scorers = cpus, scorers
        self._numbers = itertools.count()
        self._edition = 0
        self._lanes: dict[str, tuple[Lane, Mapping[str, str]]] = {}
        self.tell: Callable[[], Awaitable[None]] = _nobody
        first = [self.start(seat) for seat in range(workers)]
        self._living = Living(self.role, dict(first))
        self.seats = Seats(self, first)
        self._living.is_kept = lambda: self.seats.is_running
        scorers.tell = self._meet

    @property
    def handles(self) -> list[ActorHandle[RewardWorker]]:
        """Those that can be called now."""
        return list(self._living.workers.values())

    # As the role of its seats

    def start(self, seat: int) -> tuple[str, ActorHandle[RewardWorker]]:
        name = f"reward-{next(self._numbers)}"
        return name, start(RewardWorker, self._cpus, self._scorers.places(), role="reward")

    async def stay(self, worker: ActorHandle[RewardWorker]) -> None:
        await worker.stay.remote()

    async def join(self, name: str, worker: ActorHandle[RewardWorker]) -> None:
        """Lanes that open while this one gets ready, it is told of with all others."""
        if name in self._living.workers:
            await self._introduce(worker)
            return
        self._living.newcomers[name] = worker
        await self._introduce(worker)
        for lane, versions in list(self._lanes.values()):
            await worker.open.remote(lane, versions)
        self._living.come(name)
        await self.tell()

    async def lost(self, name: str) -> None:
        self._living.go(name)
        await self.tell()

    async def leave(self, name: str) -> None:
        worker = self._living.workers[name]
        await self.lost(name)
        await worker.quiet.remote()

    async def end(self, name: str, worker: ActorHandle[RewardWorker]) -> None:
        ray.kill(worker)

    # What the rest of the driver asks for

    async def busy(self) -> float:
        """Cores that all workers together have used since this was asked last."""
        found: list[float] = await ask_each(
            self._living.workers, lambda worker: worker.busy.remote()
        )
        return sum(found)

    async def open(self, lane: Lane) -> Mapping[str, str]:
        """Opens `lane` on every worker, once the scorers that it calls have their models; the
        version of each component."""
        assert lane.reward is not None
        versions = await self._scorers.ready(lane.reward.scorers)
        self._lanes[lane.name] = lane, versions
        opened: list[Mapping[str, str]] = await self._living.tell_all(
            lambda worker: worker.open.remote(lane, versions)
        )
        return opened[0]

    async def scores_steps(self, lane: str) -> bool:
        """Whether `lane` has components that look at a whole step."""
        found: bool = await self._living.ask_one(lambda worker: worker.scores_steps.remote(lane))
        return found

    async def score_step(
        self, lane: str, places: Sequence[Place], blocks: Sequence[ray.ObjectRef[Block]]
    ) -> list[FinalScores]:
        """Final scores of the step's groups, in order; group g is at `places[g]` in `blocks`.

        Always asks the same worker, the oldest: a component may remember the steps before. What it
        remembers dies with it.
        """
        found: list[FinalScores] = await self._living.ask_one(
            lambda worker: worker.score_step.remote(lane, places, *blocks)
        )
        return found

    async def _meet(self) -> None:
        self._edition += 1
        await ask_each({**self._living.workers, **self._living.newcomers}, self._introduce)

    async def _introduce(self, worker: ActorHandle[RewardWorker]) -> None:
        await worker.meet.remote(self._edition, self._scorers.places())


async def _nobody() -> None:
    """Nobody wants to know."""
