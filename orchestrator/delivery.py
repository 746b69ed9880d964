"""One publish's deliveries: brings weights to engines and asks each for its proofs.

Owns which parcel goes to whom and the count of what moved. Judging the answers, and what becomes of
an engine, is `manta.orchestrator.publish`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import ray

from manta.actors.engines.occupancy import NOT_COUNTED
from manta.actors.step_work import StepReport
from manta.actors.transports.protocol import Parcel
from manta.envs.records import Int32
from manta.envs.side_by_side import side_by_side
from manta.orchestrator.pools import MailboxClient
from manta.orchestrator.probe import Answer
from manta.orchestrator.rollout_pool import RolloutPool


class StoreDelivery:
    """By parcels of the weight store: each is asked for once, whoever gets it."""

    def __init__(
        self,
        rollout: RolloutPool,
        client: MailboxClient,
        probe: Sequence[Int32],
        report: StepReport,
        newest: str | None = None,
    ) -> None:
        """`newest`: the hash of the weights of the publish before, which a delta starts from."""
        self.report = report
        self.num_bytes = self.resent = 0
        self.rows = NOT_COUNTED
        self._rollout, self._client, self._probe = rollout, client, probe
        self._newest, self._is_afresh = newest, False
        self._offered: set[str] = set()
        self._parcels: dict[str | None, ray.ObjectRef[Parcel]] = {}

    def send_afresh(self, is_afresh: bool) -> None:
        """From here on no parcel that was handed out before is handed out again."""
        self._is_afresh = is_afresh
        self._parcels = {}

    async def offer(self, bases: Mapping[str, str | None]) -> dict[str, Answer | None]:
        """Brings the weights to each engine, which holds its base; None where it died."""
        self.resent += len(self._offered & bases.keys())
        self._offered |= bases.keys()
        answers = await side_by_side([self._bring(name, base) for name, base in bases.items()])
        return dict(zip(bases, answers, strict=True))

    async def _bring(self, name: str, base: str | None) -> Answer | None:
        parcel = self._parcel(base if base == self._newest else None)
        sha256 = self.report.update.weights_hash
        with suppress(ray.exceptions.RayActorError):
            renewed = await self._rollout.renew(name, parcel, sha256, self._probe)
            self.rows += renewed.rows
            self.num_bytes += renewed.delivery.num_bytes
            return Answer(renewed.delivery, renewed.probe)
        return None

    def _parcel(self, base: str | None) -> ray.ObjectRef[Parcel]:
        if base not in self._parcels:
            version = self.report.update.version
            self._parcels[base] = self._client.parcel(version, base, self._is_afresh)
        return self._parcels[base]
