"""A publish in which learner ranks send to the engines' processes themselves (nccl, ipc).

All engines are paused first, since those that meet take the weights together. Whatever goes wrong
there goes wrong for all of them: they get the weights a second time, from the weight store, to
which the learner brings them for that alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import ray

from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.step_work import StepReport
from manta.actors.transports.protocol import Delivery
from manta.actors.weights import Receipt
from manta.envs.records import Int32
from manta.envs.side_by_side import side_by_side
from manta.orchestrator.delivery import StoreDelivery
from manta.orchestrator.pools import MailboxClient
from manta.orchestrator.probe import Answer
from manta.orchestrator.rollout_pool import RolloutPool


class DirectDelivery(StoreDelivery):
    def __init__(
        self,
        rollout: RolloutPool,
        client: MailboxClient,
        probe: Sequence[Int32],
        report: StepReport,
        orders: Iterator[int],
    ) -> None:
        """`orders` numbers the orders of a run."""
        super().__init__(rollout, client, probe, report)
        self._orders = orders

    async def offer(self, bases: Mapping[str, str | None]) -> dict[str, Answer | None]:
        version = self.report.update.version
        if self._is_afresh:
            await self._client.hand_over(HandOver(next(self._orders), version, None))
            return await super().offer(bases)
        self._offered |= bases.keys()
        are_paused = await side_by_side([self._is_paused(name) for name in bases])
        alive = [name for name, is_paused in zip(bases, are_paused, strict=True) if is_paused]
        handed = HandedOver()
        if alive:
            receivers = tuple(self._rollout.receiver(name) for name in alive)
            handed = await self._client.hand_over(HandOver(next(self._orders), version, receivers))
        answers = await side_by_side([self._proofs(name, handed) for name in alive])
        return {**dict.fromkeys(bases), **dict(zip(alive, answers, strict=True))}

    async def _is_paused(self, name: str) -> bool:
        with suppress(ray.exceptions.RayActorError):
            rows = await self._rollout.pause(name)
            self.rows += rows
            return True
        return False

    async def _proofs(self, name: str, handed: HandedOver) -> Answer | None:
        nothing = Receipt(self.report.update.version, "")
        receipt = handed.receipts.get(name, nothing)
        delivery = Delivery(receipt, handed.num_bytes, handed.failure)
        self.num_bytes += delivery.num_bytes
        if receipt.sha256 != self.report.update.weights_hash:
            return Answer(delivery, ())
        with suppress(ray.exceptions.RayActorError):
            return Answer(delivery, tuple(await self._rollout.logprobs(name, self._probe)))
        return None
