"""The base of every shell: it can be asked who it is, for a sign of life, and to stay."""

from __future__ import annotations

import asyncio
import threading

import ray

from manta.actors.vitals import Identity, LifeSign, Pulse, introduce

LIFE = "life"
"""The concurrency group, a thread of its own, in which `ping` is answered while the event loop of
the others is busy."""


class Alive:
    async def introduce(self) -> Identity:
        """Who this worker is; answered once it has started. Comes before `ping`."""
        self._pulse = Pulse(asyncio.get_running_loop(), threading.get_ident())
        return introduce(ray.get_runtime_context().get_node_id())

    async def ping(self, wants_host: bool = False) -> LifeSign:
        """To be called in the group `LIFE`; with the machine's figures where they are wanted."""
        return self._pulse.sign(wants_host)

    async def stay(self) -> None:
        """Returns never: who awaits it is woken, by RayActorError, the moment this process is
        gone."""
        await asyncio.Event().wait()
