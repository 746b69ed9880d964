"""The environment workers, from the driver's side; a block goes to the one with the fewest.

Owns who has how many blocks, and which lanes a new worker must open. How groups are made is
`manta.actors.environment`'s part.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import ray
from ray.actor import ActorHandle

from manta.actors.environment import EnvironmentWorker
from manta.actors.lanes import Admission, BlockSummary, Lane
from manta.actors.reference import ReferenceWorker
from manta.actors.reward import RewardWorker
from manta.envs.packing import Block
from manta.envs.records import GroupId
from manta.orchestrator.lane_pool import LanePool
from manta.orchestrator.pools import start
from manta.orchestrator.rollout_pool import RolloutPool

_BLOCKS_STAY = {"RAY_max_direct_call_object_size": "8192"}
"""Ray sends what a call returns to its owner, the driver, if it is smaller than this (100 KiB by
default), and everybody else fetches it there. So blocks of tokens stay where they were made."""


class EnvironmentPool(LanePool[EnvironmentWorker]):
    """No name is used twice: the router takes nothing more from the calls of a worker that died."""

    role = "environment worker"

    def __init__(
        self,
        workers: int,
        cpus: float,
        tokenizer: str,
        rollout: RolloutPool,
        rewards: Sequence[ActorHandle[RewardWorker]],
        references: Sequence[ActorHandle[ReferenceWorker]],
    ) -> None:
        self._cpus, self._tokenizer, self._rollout = cpus, tokenizer, rollout
        self._rewards, self._references = rewards, references
        self._numbers = itertools.count()
        self._outstanding: Counter[str] = Counter()
        self._quiet: dict[str, asyncio.Event] = {}
        super().__init__(workers)

    @property
    def num_workers(self) -> int:
        """Those that can be asked now."""
        return len(self.living.workers)

    # As the role of its seats

    def start(self, seat: int) -> tuple[str, ActorHandle[EnvironmentWorker]]:
        name = f"environment-{next(self._numbers)}"
        handle = start(
            EnvironmentWorker,
            self._cpus,
            name,
            self._tokenizer,
            self._rollout.router,
            self._rollout.dispatch,
            self._rewards,
            self._references,
            variables=_BLOCKS_STAY,
            role="environment",
        )
        return name, handle

    async def lost(self, name: str) -> None:
        await super().lost(name)
        await self._rollout.forget(name)

    async def leave(self, name: str) -> None:
        self.living.go(name)
        quiet = self._quiet[name] = asyncio.Event()
        if self._outstanding[name]:
            await quiet.wait()

    # What the rest of the driver asks for

    async def meet(
        self,
        rewards: Sequence[ActorHandle[RewardWorker]],
        references: Sequence[ActorHandle[ReferenceWorker]],
    ) -> None:
        """These are the reward and reference workers from now on."""
        self._rewards, self._references = rewards, references
        await self._spread_news()

    async def _introduce(self, worker: ActorHandle[EnvironmentWorker]) -> None:
        await worker.meet.remote(self._edition, self._rewards, self._references)

    async def open(self, lane: Lane, versions: Mapping[str, str]) -> int:
        """Opens `lane` on every worker, those to come too; the number of its tasks."""
        self._lanes[lane.name] = lane, versions
        sizes: list[int] = await self.living.tell_all(
            lambda worker: worker.open.remote(lane, versions)
        )
        return int(sizes[0])

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[ray.ObjectRef[Block], BlockSummary]:
        """The block's reference, owned by the driver, and its summary.

        Raises RayActorError where the worker died under way; it gets no more blocks then. A block
        that is not waited for any more is given up, down to its rows in the engines.
        """
        name = await self.living.one(self._outstanding.__getitem__)
        self._outstanding[name] += 1
        refs: tuple[ray.ObjectRef[Block], ray.ObjectRef[BlockSummary]]
        refs = self.living.workers[name].run_block.remote(lane, admissions)
        try:
            return refs[0], await refs[1]
        except asyncio.CancelledError:
            ray.cancel(refs[1], recursive=False)
            raise
        except ray.exceptions.ActorDiedError:
            await self.lost(name)
            raise
        finally:
            self._outstanding[name] -= 1
            if not self._outstanding[name] and name in self._quiet:
                self._quiet.pop(name).set()

    async def write(
        self, path: str, step: int, ids: Sequence[GroupId], blocks: Sequence[ray.ObjectRef[Block]]
    ) -> None:
        """Writes the groups `ids`, which `blocks` hold, as trajectories, on a worker."""
        await self.living.ask_one(
            lambda worker: worker.write.remote(path, step, ids, *blocks),
            self._outstanding.__getitem__,
        )

    async def gold_logprob(self, lane: str, indices: Sequence[int]) -> list[float]:
        found: list[float] = await self.living.ask_one(
            lambda worker: worker.gold_logprob.remote(lane, indices),
            self._outstanding.__getitem__,
        )
        return found
