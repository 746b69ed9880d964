"""The driver's look at its workers: asks each for signs of life, and ends who is frozen.

Owns asking and killing. The verdict is `manta.orchestrator.health`'s; what becomes of a worker that
was killed is the business of whoever handles its death.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta.actors.alive import LIFE, Alive
from manta.actors.processes import Known, end
from manta.actors.vitals import Identity, LifeSign
from manta.envs.records import Json
from manta.orchestrator.controller_signs import ControllerSigns
from manta.orchestrator.health import Frozen, Health
from manta.orchestrator.places import waiting_for_nodes
from manta.orchestrator.rank_signs import Heard, Heartbeats, heard_of
from manta.orchestrator.wait import Waits

_BESIDE = {"places", "ranks", "controllers"}
"""What is followed that is no member of the roster."""
_HOST_SECONDS = 10.0
"""How often a machine is asked for its own figures."""
_END_SECONDS = 30.0
_PLACE_SECONDS = 1.0
"""How long a worker may take to start before Ray is asked whether it has a place, and how often."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker as the pools know it now. `is_serving`: its constructor is done, since it has
    answered others."""

    role: str
    name: str
    handle: ActorHandle[Alive]
    is_serving: bool = False

    @property
    def key(self) -> str:
        return str(self.handle._actor_id.hex())


class HealthWatch:
    """`roster` says who is in the run, at any moment; `tell` gets events."""

    def __init__(
        self,
        roster: Callable[[], Sequence[Member]],
        ranks: Heartbeats | None,
        controllers: ControllerSigns,
        health: Health,
        tell: Callable[[str, Mapping[str, Json]], None],
        waits: Waits,
    ) -> None:
        self._roster, self._ranks, self._health = roster, ranks, health
        self._controllers = controllers
        self._tell, self._waits = tell, waits
        self._followed: dict[str, asyncio.Task[None]] = {}
        self._handles: dict[str, ActorHandle[Alive]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._asked_host: dict[str, float] = {}

    async def run(self) -> None:
        """Looks at least once a second, until cancelled."""
        every = min(1.0, self._health.rules.every_seconds)
        self._followed["places"] = asyncio.create_task(self._look_for_places())
        self._followed["controllers"] = asyncio.create_task(self._follow_controllers())
        if self._ranks is not None:
            # Beside: the messenger may be the one who is frozen
            self._followed["ranks"] = asyncio.create_task(self._follow_ranks(self._ranks))
        try:
            while True:
                self._follow_new()
                for frozen in self._health.look():
                    self._end(frozen)
                for worker in self._health.newly_busy():
                    self._tell("worker busy", {"worker": worker.where, "in": worker.doing})
                await asyncio.sleep(every)
        finally:
            for task in (*self._followed.values(), *self._ending):
                task.cancel()

    def _follow_new(self) -> None:
        members = {member.key: member for member in self._roster()}
        for key, member in members.items():
            if key not in self._followed:
                self._health.begin(key, member.role, member.name)
                self._handles[key] = member.handle
                self._followed[key] = asyncio.create_task(self._follow(member))
            if member.is_serving:
                self._health.serving(key)
        for key in self._followed.keys() - members.keys() - _BESIDE:
            self._let_go(key)

    def _let_go(self, key: str) -> None:
        self._health.gone(key)
        self._followed.pop(key).cancel()
        self._handles.pop(key, None)

    async def _follow(self, member: Member) -> None:
        """Asks `member` as long as it lives. Its end is noticed here, and handled elsewhere."""
        key = member.key
        try:
            identity = await member.handle.introduce.remote()
            self._health.introduced(key, identity)
            while True:
                await asyncio.sleep(await self._ask(member, identity))
        except ray.exceptions.RayActorError:
            self._health.gone(key)

    async def _ask(self, member: Member, identity: Identity) -> float:
        """One sign of life; in how many seconds the next one is due."""
        ping: Any = member.handle.ping.options(concurrency_group=LIFE)
        try:
            sign: LifeSign = await ping.remote(self._wants_host(identity))
        except ray.exceptions.ActorUnavailableError:
            pass  # the network: it is silent until it answers again, and dead if Ray says so
        else:
            self._health.heard(member.key, sign)
        return self._health.rules.every_seconds

    def _wants_host(self, identity: Identity) -> bool:
        """Is it this worker's turn to tell of its machine?"""
        now = asyncio.get_running_loop().time()
        if now - self._asked_host.get(identity.node, -_HOST_SECONDS) < _HOST_SECONDS:
            return False
        self._asked_host[identity.node] = now
        return True

    async def _look_for_places(self) -> None:
        while True:
            await asyncio.sleep(_PLACE_SECONDS)
            if not self._health.is_any_late(_PLACE_SECONDS):
                continue
            try:
                waiting = await asyncio.to_thread(waiting_for_nodes)
            except ray.exceptions.RayError:
                continue  # Ray's control store does not answer: whoever needs it says so
            for worker in self._health.unplaced(waiting):
                self._tell("worker waits for a node", {"worker": worker.name, "it": worker.doing})

    async def _follow_ranks(self, ranks: Heartbeats) -> None:
        try:
            while True:
                self._hear(await heard_of(ranks))
                await asyncio.sleep(min(1.0, self._health.rules.every_seconds))
        except ray.exceptions.RayActorError:
            return  # the mailbox died, which is told by whoever waits for it

    async def _follow_controllers(self) -> None:
        known: set[str] = set()
        while True:
            heard = {
                f"controller-{who.process.pid}": (who, sign)
                for who, sign in await self._controllers.heard()
            }
            for key, (identity, sign) in heard.items():
                if key not in known:
                    self._health.begin(key, "controller", "learner")
                    self._health.introduced(key, identity)
                self._health.heard(key, sign)
            for key in known - heard.keys():
                self._health.gone(key)
            known = set(heard)
            await asyncio.sleep(min(1.0, self._health.rules.every_seconds))

    def _hear(self, heard: Sequence[Heard]) -> None:
        beats = {f"rank-{each.rank}-{each.identity.process.pid}": each for each in heard}
        for key, beat in beats.items():
            if key not in self._handles:
                self._health.begin(key, "learner", f"rank-{beat.rank}")
                self._health.introduced(key, beat.identity)
                self._handles[key] = beat.handle
            if beat.sign is not None:
                self._health.heard(key, beat.sign, beat.age_seconds)
        for key in {key for key in self._handles if key.startswith("rank-")} - beats.keys():
            self._health.gone(key)
            self._handles.pop(key)

    def _end(self, frozen: Frozen) -> None:
        """Names it, and kills it: from here on it is a worker that died."""
        worker = frozen.worker
        waiting = self._waits.current()
        identity = worker.identity
        self._tell(
            "worker frozen",
            {
                "role": worker.role,
                "name": worker.name,
                "node": "" if identity is None else identity.node,
                "host": "" if identity is None else identity.process.host,
                "pid": 0 if identity is None else identity.process.pid,
                "why": frozen.why,
                "overdue_seconds": round(frozen.overdue_seconds, 2),
                "driver_waits_for": waiting[0].name if waiting else "nothing",
                "now": "killed",
            },
        )
        if worker.key in self._handles:
            ray.kill(self._handles[worker.key])
        if identity is not None:
            task = asyncio.create_task(self._make_sure(worker.where, identity))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _make_sure(self, name: str, identity: Identity) -> None:
        """Ray takes five seconds to end a process that is stopped, and gives up on none that it
        started beside: here all of it goes at once."""
        is_gone = await _ended(identity.process, identity.node)
        if not is_gone:
            told = "it could not be killed: free its machine by hand"
            self._tell("frozen worker left behind", {"worker": name, "why": told})


async def _ended(process: Known, node: str) -> bool:
    """Kills `process`, by a task where it is another machine's; is it gone?"""
    if process.is_here:
        return await asyncio.to_thread(end, process)
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    ending = ray.remote(end).options(num_cpus=0, scheduling_strategy=place)
    try:
        async with asyncio.timeout(_END_SECONDS):
            return bool(await ending.remote(process))
    except (TimeoutError, ray.exceptions.RayError):
        return False
