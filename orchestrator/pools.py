"""How an actor of a run is started, and the driver's side of mailbox and weight store.

Workers have typed wrappers of their own, the only places where the driver calls them:
`rollout_pool`, `environment_pool`, `reward_pool`, `reference_pool` and `scorer_pool` of
`manta.orchestrator`. A pool owns its handles; results that the driver asks for belong to the
driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta.actors.alive import LIFE
from manta.actors.device_place import DevicePlace
from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.mailbox import Mailbox
from manta.actors.models.spec import ModelSpec
from manta.actors.muster import Heartbeat
from manta.actors.step_work import Adopt, Fall, Saved, StartOrder, StepReport, StepWork, Stop
from manta.actors.transports.protocol import Parcel
from manta.actors.transports.settings import TransportSettings
from manta.actors.weight_store import WeightStore
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion
from manta.orchestrator.placement import offered_nodes
from manta.orchestrator.role_resources import HEAD_NODE, asked

T = TypeVar("T")
Answer = TypeVar("Answer")


def start(
    kind: type[T],
    cpus: float,
    *arguments: object,
    gpus: float = 0,
    place: DevicePlace | None = None,
    variables: Mapping[str, str] | None = None,
    role: str | None = None,
) -> ActorHandle[T]:
    """A new actor of `kind`, with these environment `variables`; its constructor runs on the worker
    and is not waited for. A worker of a `role` stands on its nodes, everybody else on the head,
    which outlives them. At `place` it reserves no GPU and uses those that somebody else has
    reserved there."""
    found = dict(variables or {}) | dict(place.environment() if place else {})
    nodes = HEAD_NODE if role is None else asked(role, offered_nodes())
    # So that a worker can say that it lives while its event loop is busy
    options = ray.remote(concurrency_groups={LIFE: 1})(kind).options(  # type: ignore[call-overload]
        num_cpus=cpus,
        num_gpus=0 if place else gpus,
        resources=None if place else dict(nodes),
        scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False)
        if place
        else None,
        runtime_env={"env_vars": found} if found else None,
    )
    return cast("ActorHandle[T]", options.remote(*arguments))


async def ask_each(
    workers: Mapping[str, ActorHandle[T]], call: Callable[[ActorHandle[T]], Awaitable[Answer]]
) -> list[Answer]:
    """What each of `workers` answers, in order, without those that have died."""
    answers = await asyncio.gather(
        *(call(worker) for worker in workers.values()), return_exceptions=True
    )
    found: list[Answer] = []
    for answer in answers:
        if isinstance(answer, ray.exceptions.RayActorError):
            continue
        if isinstance(answer, BaseException):
            raise answer
        found.append(answer)
    return found


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What every worker that holds the model needs to build it."""

    spec: ModelSpec
    vocab_size: int
    seed: int


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

    async def dismiss(self) -> None:
        """Has the present learner group leave between two steps, for another one to follow."""
        await self.mailbox.dismiss.remote()

    async def fell(self, fall: Fall) -> None:
        """Says that a learner group has ended, as `fall` tells."""
        await self.mailbox.fell.remote(fall)

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

    async def started(self, incarnation: int) -> None:
        """Until all ranks of that learner group have read what it starts from, or it has been
        replaced."""
        await self.mailbox.started.remote(incarnation)

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
