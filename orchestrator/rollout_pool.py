"""The engines named `policy`, and the router before them, from the driver's side.

Owns the handles, and which engines are in service. That an engine serves the right weights is the
publisher's to prove before it says `serve`; that a dead one is replaced is the seats'
(`manta.orchestrator.seats`), for which the pool is the role.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Protocol

import ray
from ray.actor import ActorHandle

from manta.actors.device_place import DevicePlace, beside
from manta.actors.dispatch import DispatchSettings
from manta.actors.engine_state import Word
from manta.actors.engines.occupancy import RowSeconds
from manta.actors.engines.settings import EngineSettings
from manta.actors.hand_over import Receiver
from manta.actors.rollout import Renewed, RolloutWorker
from manta.actors.router import Router
from manta.actors.router_figures import RouterFigures
from manta.actors.transports.protocol import Parcel
from manta.actors.transports.settings import TransportSettings
from manta.envs.records import Float32, Int32
from manta.orchestrator.pools import ModelSource, start
from manta.orchestrator.seats import Seats

_CLOSE_SECONDS = 10.0


class Proves(Protocol):
    """What the publisher does for engines outside of a publish."""

    async def welcome(self, name: str) -> None:
        """Returns once the engine, which is up, has proved the newest weights. Raises
        RayActorError where it died, or was given up."""
        ...

    async def dismiss(self, name: str) -> None:
        """Ends the engine, and not in the middle of a publish."""
        ...

    def forget(self, name: str) -> None:
        """The engine is gone: what it has proved is not the next one's of that name."""
        ...


class RolloutPool:
    """Of the engines that are there as many serve as the run wants; what is beyond that stands by,
    with the same weights, and serves as soon as another one dies."""

    role = "engine"

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
        self._size = settings.sizes.min
        self._engines: dict[str, ActorHandle[RolloutWorker]] = {}
        self._arrived: dict[str, ActorHandle[RolloutWorker]] = {}
        self._has_arrived = asyncio.Event()
        self._joining: dict[str, ray.ObjectRef[None]] = {}
        self._up: set[str] = set()
        self._proven: set[str] = set()
        self._serving: set[str] = set()
        self._leaving: set[str] = set()
        self._vacated: list[str] = []
        self._publisher: Proves | None = None
        self.seats: Seats[ActorHandle[RolloutWorker]] | None = None
        """None where engines that die are not replaced one by one."""
        if settings.placement == "disaggregated":
            first = [self.start(seat) for seat in range(self._size + settings.standby)]
            for name, handle in first:
                self._take_in(name, handle)

    def replace_through(self, publisher: Proves) -> None:
        """From when the seats run, engines that die are replaced; `publisher` has new ones prove
        their weights."""
        self._publisher = publisher
        self.seats = Seats(self, list(self._engines.items()))

    def members(self) -> dict[str, ActorHandle[RolloutWorker]]:
        """All engines that have been started and not been let go, by name."""
        return dict(self._engines) if self.seats is None else self.seats.members()

    def start_beside(self, ranks: Sequence[DevicePlace]) -> None:
        """Starts colocated engines on the devices of learner `ranks`, anew where they had others.

        Raises ValueError where the two do not come out even.
        """
        places = beside(ranks, self._size, self._settings.devices)
        for handle in self._engines.values():
            ray.kill(handle)
        for seat, place in enumerate(places):
            self._take_in(*self.start(seat, place))

    # As the role of its seats

    def start(
        self, seat: int, place: DevicePlace | None = None
    ) -> tuple[str, ActorHandle[RolloutWorker]]:
        gpus = self._settings.devices
        handle = start(
            RolloutWorker, self._cpus, *self._arguments, gpus=gpus, place=place, role="rollout"
        )
        return f"policy-{seat}", handle

    async def stay(self, worker: ActorHandle[RolloutWorker]) -> None:
        await worker.stay.remote()

    async def join(self, name: str, worker: ActorHandle[RolloutWorker]) -> None:
        """Waits for the process before anybody waits for the engine: a slow start holds up no
        publish."""
        assert self._publisher is not None
        await worker.unfinished.remote()
        self._up.add(name)
        if self._engines.get(name) is not worker:
            self._arrived[name] = worker
            self._has_arrived.set()
        await self._publisher.welcome(name)

    async def lost(self, name: str) -> None:
        assert self._publisher is not None
        self._publisher.forget(name)
        self._arrived.pop(name, None)
        self._drop(name)
        await self._tell(name, "lose")
        await self._stand_in()

    async def leave(self, name: str) -> None:
        """Its calls go to their end, or on elsewhere where the seats end it before."""
        assert self._publisher is not None
        self._vacate(name)
        self._leaving.add(name)
        await self._stand_in()
        await self.router.drain.remote(name)
        await self._close(self._engine(name))
        await self._publisher.dismiss(name)

    async def end(self, name: str, worker: ActorHandle[RolloutWorker]) -> None:
        if name in self._up:
            self._up.discard(name)
            await self._close(worker)
        ray.kill(worker)

    # What the publisher asks for

    @property
    def names(self) -> list[str]:
        return list(self._engines)

    @property
    def is_kept(self) -> bool:
        """Are engines that die replaced?"""
        return self.seats is not None and self.seats.is_running

    def take_in(self) -> list[str]:
        """The engines there are, with those whose processes have come up meanwhile."""
        for name, handle in self._arrived.items():
            self._take_in(name, handle)
        self._arrived = {}
        self._has_arrived.clear()
        return self.names

    async def arrival(self) -> None:
        """Returns once an engine has come up that `take_in` gives."""
        await self._has_arrived.wait()

    async def renew(
        self, name: str, parcel: ray.ObjectRef[Parcel], sha256: str, probe: Sequence[Int32]
    ) -> Renewed:
        """No more requests for the engine. It keeps those that it has, decodes nothing from when
        the parcel is there, wakes if it sleeps, loads the weights with hash `sha256`, and scores
        `probe`."""
        await self._pause(name)
        return await self._engine(name).renew.remote(parcel, sha256, probe)

    async def pause(self, name: str) -> RowSeconds:
        """No more requests for the engine; it keeps those that it has, and decodes nothing. How
        busy its rows were since it was paused last."""
        await self._pause(name)
        return await self._engine(name).pause.remote()

    async def sleep(self, name: str) -> bool:
        """No more requests for the engine, whose memory is free afterwards; it keeps requests that
        it has. False where it died. `renew` wakes it."""
        await self._pause(name)
        with suppress(ray.exceptions.RayActorError):
            await self._engine(name).sleep.remote()
            return True
        return False

    def receiver(self, name: str) -> Receiver:
        """What a learner rank needs to bring weights to the engine itself."""
        return Receiver(name, self._engine(name), self._processes)

    async def logprobs(self, name: str, rows: Sequence[Int32]) -> list[Float32]:
        return await self._engine(name).logprobs.remote(rows)

    async def resume(self, name: str) -> None:
        await self._engine(name).resume.remote()

    async def serve(self, name: str) -> None:
        """A verified engine gets requests, again or for the first time, or stands by."""
        self._engine(name)
        self._proven.add(name)
        if name in self._serving:
            await self._tell(name, "serve")
        await self._stand_in()

    async def serve_all(self) -> None:
        """For runs without a learner: engines serve the weights that they built."""
        await asyncio.gather(*(self.serve(name) for name in self.names))

    async def retire(self, name: str) -> None:
        """Takes an engine out of service and ends it, so that requests that it keeps fail, and are
        made again elsewhere, instead of waiting for a resume that never comes."""
        handle = self._drop(name)
        await self._tell(name, "lose")
        if handle is not None:
            ray.kill(handle)

    # What the rest of the driver asks for

    def resize(self, size: int) -> None:
        """As many engines are to serve from now on."""
        assert self.seats is not None
        self._size = size
        self.seats.resize(size + self._settings.standby)

    async def forget(self, holder: str) -> None:
        """The environment worker `holder` died: nothing of its calls is waited for."""
        await self.router.forget.remote(holder)

    async def close(self) -> None:
        """Ends what engines started beside their workers; one that is gone, or does not answer, is
        left to Ray."""
        ended = (self._close(engine) for engine in self._engines.values())
        await asyncio.gather(*ended, return_exceptions=True)

    async def routed(self) -> None:
        """Returns never; raises RayActorError the moment the router is gone. Every call to an
        engine fails from then on, so that a thousand groups break within a second."""
        await self.router.stay.remote()

    async def figures(self) -> RouterFigures:
        return await self.router.figures.remote()

    def metrics(self) -> dict[str, float]:
        """How many engines serve, stand by, are on their way, have died, and are to serve."""
        numbers = {
            # Those that are at rest for a publish too
            "pool/rollout/serving": float(len(self._serving)),
            "pool/rollout/standby": float(len(self._proven - self._serving)),
            "pool/rollout/target": float(self._size),
        }
        if self.seats is not None:
            figures = self.seats.figures()
            numbers["pool/rollout/starting"] = float(figures.starting)
            numbers["pool/rollout/deaths"] = float(figures.deaths)
        return numbers

    def _take_in(self, name: str, handle: ActorHandle[RolloutWorker]) -> None:
        self._engines[name] = handle
        self._joining[name] = self.router.join.remote(name, handle)

    def _engine(self, name: str) -> ActorHandle[RolloutWorker]:
        if name not in self._engines:
            raise ray.exceptions.ActorDiedError
        return self._engines[name]

    def _drop(self, name: str) -> ActorHandle[RolloutWorker] | None:
        self._proven.discard(name)
        self._vacate(name)
        self._leaving.discard(name)
        return self._engines.pop(name, None)

    async def _close(self, worker: ActorHandle[RolloutWorker]) -> None:
        """Ends what an engine started beside its worker."""
        with suppress(TimeoutError, ray.exceptions.RayActorError):
            await asyncio.wait_for(_awaited(worker.close.remote()), _CLOSE_SECONDS)

    async def _pause(self, name: str) -> None:
        self._engine(name)
        self._proven.discard(name)
        await self._tell(name, "pause")

    async def _stand_in(self) -> None:
        """Takes engines into service that have proved their weights, while too few serve."""
        for name in sorted(self._proven - self._serving - self._leaving):
            if len(self._serving) >= self._size:
                return
            self._serving.add(name)
            await self._tell(name, "serve")
            if self._vacated and self.seats is not None:
                self.seats.tell("takes the place", name, self._vacated.pop())

    def _vacate(self, name: str) -> None:
        """The engine serves no more; with others that stand by, one takes its place."""
        served = name in self._serving
        self._serving.discard(name)
        if served and self._settings.standby and len(self._serving) < self._size:
            self._vacated.append(name)

    async def _tell(self, name: str, word: Word) -> None:
        # A word that overtakes the engine's `join` would be lost
        if name in self._joining:
            await self._joining[name]
        await self.router.tell.remote(name, word)


async def _awaited(answer: Awaitable[None]) -> None:
    await answer
