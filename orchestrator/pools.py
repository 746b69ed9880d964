"""Typed wrappers over the Ray actors of a run: the only place where the driver calls workers.

A pool owns its handles; results that the driver asks for belong to the driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta.actors.device_place import DevicePlace, beside
from manta.actors.dispatch import DispatchSettings
from manta.actors.engine_state import Word
from manta.actors.engines.occupancy import RowSeconds
from manta.actors.engines.settings import EngineSettings
from manta.actors.environment import EnvironmentWorker
from manta.actors.hand_over import HandedOver, HandOver, Receiver
from manta.actors.lanes import Admission, BlockSummary, Lane
from manta.actors.mailbox import (
    Adopt,
    Fall,
    Mailbox,
    Saved,
    StartOrder,
    StepReport,
    StepWork,
    Stop,
)
from manta.actors.models.spec import ModelSpec
from manta.actors.muster import Heartbeat
from manta.actors.reference import ReferenceWorker
from manta.actors.reward import RewardWorker
from manta.actors.rollout import Renewed, RolloutWorker
from manta.actors.router import Router
from manta.actors.router_figures import RouterFigures
from manta.actors.transports.protocol import Parcel
from manta.actors.transports.settings import TransportSettings
from manta.actors.weight_store import WeightStore
from manta.actors.weights import Weights
from manta.envs.packing import Block
from manta.envs.records import Float32, GroupId, Int32, WeightVersion

T = TypeVar("T")

CLOSE_SECONDS = 10.0


def start(
    kind: type[T],
    cpus: float,
    *arguments: object,
    gpus: float = 0,
    place: DevicePlace | None = None,
    variables: Mapping[str, str] | None = None,
) -> ActorHandle[T]:
    """A new actor of `kind`, with these environment `variables`; its constructor runs on the worker
    and is not waited for. At `place` it reserves no GPU and uses those that somebody else has
    reserved there."""
    found = dict(variables or {}) | dict(place.environment() if place else {})
    options = ray.remote(kind).options(
        num_cpus=cpus,
        num_gpus=0 if place else gpus,
        scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False)
        if place
        else None,
        runtime_env={"env_vars": found} if found else None,
    )
    return cast("ActorHandle[T]", options.remote(*arguments))


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What every worker that holds the model needs to build it."""

    spec: ModelSpec
    vocab_size: int
    seed: int


class RolloutPool:
    """The engines named `policy`, and the router before them, which is there before they are."""

    def __init__(
        self,
        model: ModelSource,
        settings: EngineSettings,
        cpus: float,
        deterministic: bool,
        transport: TransportSettings,
    ) -> None:
        self.dispatch = DispatchSettings(
            settings.rows_ahead, settings.progress_seconds, restarts=deterministic
        )
        self._processes = settings.vllm.tensor_parallel * settings.vllm.data_parallel
        most_rows = settings.max_rows + settings.rows_ahead
        self.router: ActorHandle[Router] = start(
            Router, 0, settings.max_rows, most_rows, settings.adaptive_rows
        )
        self._settings, self._cpus = settings, cpus
        self._arguments = (
            settings,
            model.spec,
            model.vocab_size,
            model.seed,
            deterministic,
            transport,
        )
        self._engines: dict[str, ActorHandle[RolloutWorker]] = {}
        self._joining: list[ray.ObjectRef[None]] = []
        if settings.placement == "disaggregated":
            self._join([None] * settings.workers)

    def start_beside(self, ranks: Sequence[DevicePlace]) -> None:
        """Starts colocated engines on the devices of learner `ranks`, anew where they had others.

        Raises ValueError where the two do not come out even.
        """
        places = beside(ranks, self._settings.workers, self._settings.devices)
        for handle in self._engines.values():
            ray.kill(handle)
        self._join(places)

    def _join(self, places: Sequence[DevicePlace | None]) -> None:
        for i, place in enumerate(places):
            handle = start(
                RolloutWorker,
                self._cpus,
                *self._arguments,
                gpus=self._settings.devices,
                place=place,
            )
            self._engines[f"policy-{i}"] = handle
            self._joining.append(self.router.join.remote(f"policy-{i}", handle))

    async def _tell(self, name: str, word: Word) -> None:
        # A word that overtakes the engine's `join` would be lost
        await asyncio.gather(*self._joining)
        await self.router.tell.remote(name, word)

    @property
    def names(self) -> list[str]:
        return list(self._engines)

    async def renew(
        self, name: str, parcel: ray.ObjectRef[Parcel], sha256: str, probe: Sequence[Int32]
    ) -> Renewed:
        """No more requests for the engine. It keeps those that it has, decodes nothing from when
        the parcel is there, wakes if it sleeps, loads the weights with hash `sha256`, and scores
        `probe`."""
        await self._tell(name, "pause")
        return await self._engines[name].renew.remote(parcel, sha256, probe)

    async def pause(self, name: str) -> RowSeconds:
        """No more requests for the engine; it keeps those that it has, and decodes nothing. How
        busy its rows were since it was paused last."""
        await self._tell(name, "pause")
        return await self._engines[name].pause.remote()

    async def sleep(self, name: str) -> bool:
        """No more requests for the engine, whose memory is free afterwards; it keeps requests that
        it has. False where it died. `renew` wakes it."""
        await self._tell(name, "pause")
        with suppress(ray.exceptions.RayActorError):
            await self._engines[name].sleep.remote()
            return True
        return False

    def receiver(self, name: str) -> Receiver:
        """What a learner rank needs to bring weights to the engine itself."""
        return Receiver(name, self._engines[name], self._processes)

    async def logprobs(self, name: str, rows: Sequence[Int32]) -> list[Float32]:
        return await self._engines[name].logprobs.remote(rows)

    async def resume(self, name: str) -> None:
        await self._engines[name].resume.remote()

    async def serve(self, name: str) -> None:
        """Requests for a verified engine, again or for the first time."""
        await self._tell(name, "serve")

    async def serve_all(self) -> None:
        """For runs without a learner: engines serve the weights that they built."""
        await asyncio.gather(*(self.serve(name) for name in self.names))

    async def retire(self, name: str) -> None:
        """Takes an engine out of service and ends it, so that requests that it keeps fail, and are
        made again elsewhere, instead of waiting for a resume that never comes."""
        await self._tell(name, "lose")
        ray.kill(self._engines.pop(name))

    async def drain(self, name: str) -> None:
        """Ends an engine once it has finished what it has."""
        await self.router.drain.remote(name)
        ray.kill(self._engines.pop(name))

    async def forget(self, holder: str) -> None:
        """The environment worker `holder` died: nothing of its calls is waited for."""
        await self.router.forget.remote(holder)

    async def close(self) -> None:
        """Ends what engines started beside their workers; one that is gone, or does not answer, is
        left to Ray."""
        calls = [engine.close.remote() for engine in self._engines.values()]
        with suppress(TimeoutError):
            ended = asyncio.gather(*calls, return_exceptions=True)
            await asyncio.wait_for(ended, CLOSE_SECONDS)

    async def figures(self) -> RouterFigures:
        return await self.router.figures.remote()


_BLOCKS_STAY = {"RAY_max_direct_call_object_size": "8192"}
"""Ray sends what a call returns to its owner, the driver, if it is smaller than this (100 KiB by
default), and everybody else fetches it there. So blocks of tokens stay where they were made."""


class NoEnvironmentWorkerLeft(RuntimeError):
    """Every environment worker has died."""


class EnvironmentPool:
    """Environment workers; a block goes to the living one with the fewest blocks under way."""

    def __init__(
        self,
        workers: int,
        cpus: float,
        tokenizer: str,
        rollout: RolloutPool,
        rewards: Sequence[ActorHandle[RewardWorker]],
        references: Sequence[ActorHandle[ReferenceWorker]],
    ) -> None:
        self._workers = {
            i: start(
                EnvironmentWorker,
                cpus,
                _holder(i),
                tokenizer,
                rollout.router,
                rollout.dispatch,
                rewards,
                references,
                variables=_BLOCKS_STAY,
            )
            for i in range(workers)
        }
        self._outstanding = [0] * workers
        self._rollout = rollout

    @property
    def num_workers(self) -> int:
        """Those that live, as far as is known."""
        return len(self._workers)

    async def open(self, lane: Lane, versions: Mapping[str, str]) -> int:
        """Opens `lane` on every worker; the number of its tasks."""
        sizes: list[int] = await asyncio.gather(
            *(worker.open.remote(lane, versions) for worker in self._workers.values())
        )
        return int(sizes[0])

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[ray.ObjectRef[Block], BlockSummary]:
        """The block's reference, owned by the driver, and its summary.

        Raises ActorDiedError where the worker died under way; it gets no more blocks then. A block
        that is not waited for any more is given up, down to its rows in the engines.
        """
        i = self._idlest()
        self._outstanding[i] += 1
        refs: tuple[ray.ObjectRef[Block], ray.ObjectRef[BlockSummary]]
        refs = self._workers[i].run_block.remote(lane, admissions)
        try:
            return refs[0], await refs[1]
        except asyncio.CancelledError:
            ray.cancel(refs[1], recursive=False)
            raise
        except ray.exceptions.ActorDiedError:
            self._workers.pop(i, None)
            await self._rollout.forget(_holder(i))
            raise
        finally:
            self._outstanding[i] -= 1

    async def write(
        self, path: str, step: int, ids: Sequence[GroupId], blocks: Sequence[ray.ObjectRef[Block]]
    ) -> None:
        """Writes the groups `ids`, which `blocks` hold, as trajectories, on a worker."""
        await self._workers[self._idlest()].write.remote(path, step, ids, *blocks)

    async def gold_logprob(self, lane: str, indices: Sequence[int]) -> list[float]:
        return await self._workers[self._idlest()].gold_logprob.remote(lane, indices)

    def _idlest(self) -> int:
        if not self._workers:
            raise NoEnvironmentWorkerLeft(
                f"all {len(self._outstanding)} environment workers have died: look at their logs "
                "in the Ray session directory (out of memory?), then start the run again"
            )
        return min(self._workers, key=lambda i: self._outstanding[i])


def _holder(worker: int) -> str:
    """What the router knows an environment worker by."""
    return f"environment-{worker}"


class MailboxClient:
    """The driver's side of the mailbox and the weight store."""

    def __init__(self, order: StartOrder, transport: TransportSettings) -> None:
        self.mailbox: ActorHandle[Mailbox] = start(Mailbox, 0, order)
        self.weight_store: ActorHandle[WeightStore] = start(WeightStore, 0, transport)

    async def put(self, work: StepWork) -> None:
        await self.mailbox.put.remote(work)

    async def result(self, step: int) -> dict[int, StepReport]:
        return await self.mailbox.result.remote(step)

    async def adopt(self, order: Adopt) -> dict[int, StepReport]:
        """Has the learner ranks go on with other weights; their reports, by rank."""
        return await self.mailbox.adopt.remote(order)

    async def stop(self, save_to: str | None) -> None:
        await self.mailbox.stop.remote(Stop(save_to))

    async def saved(self, step: int) -> tuple[Saved, ...]:
        return await self.mailbox.all_saved.remote(step)

    async def forget(self, step: int) -> None:
        await self.mailbox.forget.remote(step)

    async def fall(self, number: int) -> Fall:
        """The fall of a learner group with that number, counted from 0; waits for it."""
        return await self.mailbox.fall.remote(number)

    async def restart(self, order: StartOrder) -> int:
        """Has the next learner group start from `order`; how many steps it replays.

        Raises StepsForgotten where steps that it would need are no more.
        """
        return await self.mailbox.restart.remote(order)

    async def heartbeats(self) -> tuple[Heartbeat, ...]:
        """When each rank of the present group was last heard of, and the actor to kill it by."""
        return await self.mailbox.heartbeats.remote()

    async def hand_over(self, order: HandOver) -> HandedOver:
        """Has the learner ranks obey `order`; rank 0's answer."""
        return await self.mailbox.hand_over.remote(order)

    async def put_weights(self, weights: Weights) -> None:
        """Brings the driver's own `weights`, read from a checkpoint, to the weight store."""
        await self.weight_store.put.remote(weights)

    def parcel(
        self, version: WeightVersion, base: str | None, afresh: bool = False
    ) -> ray.ObjectRef[Parcel]:
        """A reference, owned by the driver, to what brings holders of `base` to `version`; made
        `afresh` where the one before may be damaged."""
        return self.weight_store.parcel.remote(version, base, afresh)
