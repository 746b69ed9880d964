"""Publish: transfer -> pause -> load -> verify -> resume, on every engine, once a step at most.

Two proofs before an engine's samples count. Receipt: the hash that the engine's process computed
over all the bytes it ends up with equals the learner's. Probe: log-probs of fixed tokens, see
`manta.orchestrator.probe`. An engine first gets a delta, where what it proved to hold is what the
learner's delta starts from. After a mismatch it gets the weights in full; a second mismatch takes
it out of service, by name. The driver handles references to parcels only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import ray

from manta.actors.engines.occupancy import NOT_COUNTED, RowSeconds
from manta.actors.mailbox import StepReport
from manta.actors.transports.protocol import Parcel
from manta.envs.records import Int32, WeightVersion
from manta.envs.side_by_side import side_by_side
from manta.orchestrator.pools import MailboxClient, RolloutPool
from manta.orchestrator.probe import Answer, Proofs, Tolerances, largest_gap
from manta.orchestrator.wait import Waits

DIED = "it died"


class NoEngineLeft(RuntimeError):
    """Every engine failed verification."""


@dataclass(frozen=True, slots=True)
class Published:
    """`probe_gap`: largest |engine - learner| over the probe's log-probs and all engines that
    serve, `engine_gap` largest |engine - engine|; `num_bytes` moved to all engines together.

    `resent`: how many got the weights a second time, in full. `problems`: all that was found wrong,
    as (engine, what), also where the second delivery was right; `retired`: engines out of service.
    `rows`: how busy the engines' rows were since the publish before.
    """

    version: WeightVersion
    probe_gap: float
    retired: tuple[str, ...]
    engine_gap: float = 0.0
    num_bytes: int = 0
    resent: int = 0
    problems: tuple[tuple[str, str], ...] = ()
    rows: RowSeconds = NOT_COUNTED


class Publisher:
    def __init__(
        self,
        rollout: RolloutPool,
        client: MailboxClient,
        probe: Sequence[Int32],
        tolerances: Tolerances,
        waits: Waits,
        deadline_seconds: float,
    ) -> None:
        self._rollout, self._client, self._probe = rollout, client, probe
        self._waits, self._deadline = waits, deadline_seconds
        self._proofs = Proofs(tolerances)
        self._newest: str | None = None
        self.gaps: dict[str, float] = {}
        """The probe gap of every engine that passed the last publish."""

    async def publish(self, report: StepReport) -> Published:
        """Brings the learner's weights of `report` to every engine and proves it.

        Raises NoEngineLeft where no engine passes.
        """
        names = self._rollout.names
        delivery = _Delivery(self._rollout, self._client, self._probe, report, self._newest)
        published = await self._waits.wait(
            f"engines {', '.join(names)} to take weights {report.update.version}",
            self._bring(names, delivery),
            self._deadline,
        )
        self._newest = report.update.weights_hash
        return published

    async def _bring(self, names: Sequence[str], delivery: _Delivery) -> Published:
        report = delivery.report
        passed: dict[str, Answer] = {}
        problems: list[tuple[str, str]] = []
        pending = list(names)
        for in_full in (False, True):
            delivery.send_afresh(in_full)
            bases = [None if in_full else self._proofs.holds(name) for name in pending]
            offers = [delivery.offer(name, base) for name, base in zip(pending, bases, strict=True)]
            answers = dict(zip(pending, await side_by_side(offers), strict=True))
            alive = {name: answer for name, answer in answers.items() if answer is not None}
            wrong = self._proofs.problems(alive, passed, report)
            wrong |= {name: DIED for name, answer in answers.items() if answer is None}
            good = {name: answer for name, answer in alive.items() if name not in wrong}
            are_up = await side_by_side([self._take_up(name) for name in good])
            wrong |= {name: DIED for name, up in zip(good, are_up, strict=True) if not up}
            for name in good.keys() - wrong.keys():
                passed[name] = good[name]
                self._proofs.accept(name, good[name], report)
            problems += wrong.items()
            pending = [name for name, problem in wrong.items() if problem != DIED]
            if not pending:
                break
        retired = tuple(name for name in names if name not in passed)
        await side_by_side([self._retire(name) for name in retired])
        if not passed:
            told = "; ".join(f"{name}: {problem}" for name, problem in problems)
            raise NoEngineLeft(
                f"no engine proved that it serves weights {report.update.version}: "
                f"{told or 'there is none'}"
            )
        self.gaps = {
            name: largest_gap(answer.probe, report.probe) for name, answer in passed.items()
        }
        return _published(delivery, passed, retired, problems)

    async def _take_up(self, name: str) -> bool:
        """Resumes a verified engine and takes it into service; False if it died."""
        with suppress(ray.exceptions.RayActorError):
            await self._rollout.resume(name)
            await self._rollout.serve(name)
            return True
        return False

    async def _retire(self, name: str) -> None:
        self._proofs.forget(name)
        await self._rollout.retire(name)


class _Delivery:
    """One publish: each parcel is asked for once, whoever gets it."""

    def __init__(
        self,
        rollout: RolloutPool,
        client: MailboxClient,
        probe: Sequence[Int32],
        report: StepReport,
        newest: str | None,
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

    async def offer(self, name: str, base: str | None) -> Answer | None:
        """Brings the weights to the engine, which holds `base`, and pauses it; None if it died."""
        self.resent += name in self._offered
        self._offered.add(name)
        parcel = self._parcel(base if base == self._newest else None)
        with suppress(ray.exceptions.RayActorError):
            renewed = await self._rollout.renew(name, parcel, self._probe)
            self.rows += renewed.rows
            self.num_bytes += renewed.delivery.num_bytes
            return Answer(renewed.delivery, renewed.probe)
        return None

    def _parcel(self, base: str | None) -> ray.ObjectRef[Parcel]:
        if base not in self._parcels:
            version = self.report.update.version
            self._parcels[base] = self._client.parcel(version, base, self._is_afresh)
        return self._parcels[base]


def _published(
    delivery: _Delivery,
    passed: dict[str, Answer],
    retired: tuple[str, ...],
    problems: Sequence[tuple[str, str]],
) -> Published:
    probes = [answer.probe for answer in passed.values()]
    return Published(
        version=delivery.report.update.version,
        probe_gap=max(largest_gap(probe, delivery.report.probe) for probe in probes),
        retired=retired,
        engine_gap=max(largest_gap(one, other) for one in probes for other in probes),
        num_bytes=delivery.num_bytes,
        resent=delivery.resent,
        problems=tuple(problems),
        rows=delivery.rows,
    )
