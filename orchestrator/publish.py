"""Publish: transfer -> pause -> load -> verify -> resume, on every engine, once a step at most.

Two proofs before an engine's samples count. Receipt: the hash that the engine's process computed
over all the bytes it ends up with equals the learner's. Probe: log-probs of fixed tokens, see
`manta.orchestrator.probe`. An engine first gets a delta, where what it proved to hold is what the
learner's delta starts from. After a mismatch it gets the weights in full; a second mismatch takes
it out of service, by name. The driver handles references to parcels only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import ray

from manta.actors.engines.occupancy import NOT_COUNTED, RowSeconds
from manta.actors.mailbox import StepReport
from manta.envs.records import Int32, WeightVersion
from manta.envs.side_by_side import side_by_side
from manta.orchestrator.delivery import StoreDelivery
from manta.orchestrator.direct_delivery import DirectDelivery
from manta.orchestrator.pools import MailboxClient, RolloutPool
from manta.orchestrator.probe import Answer, Proofs, Tolerances, largest_gap, widest_gap
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
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        is_direct: bool = False,
    ) -> None:
        """Each publish is made inside a `turn`."""
        self._rollout, self._client, self._probe = rollout, client, probe
        self._is_direct = is_direct
        self._orders = itertools.count(1)
        self._waits, self._deadline = waits, deadline_seconds
        self._proofs = Proofs(tolerances)
        self._turn = turn
        self._newest: str | None = None
        self.gaps: dict[str, float] = {}
        """The probe gap of every engine that passed the last publish."""

    async def publish(self, report: StepReport) -> Published:
        """Brings the learner's weights of `report` to every engine and proves it.

        Raises NoEngineLeft where no engine passes.
        """
        names = self._rollout.names
        delivery = self._delivery(report)
        with self._turn():
            published = await self._waits.wait(
                f"engines {', '.join(names)} to take weights {report.update.version}",
                self._bring(names, delivery),
                self._deadline,
            )
        self._newest = report.update.weights_hash
        return published

    def _delivery(self, report: StepReport) -> StoreDelivery:
        parts = (self._rollout, self._client, self._probe, report)
        if self._is_direct:
            return DirectDelivery(*parts, self._orders)
        return StoreDelivery(*parts, self._newest)

    async def _bring(self, names: Sequence[str], delivery: StoreDelivery) -> Published:
        report = delivery.report
        passed: dict[str, Answer] = {}
        problems: list[tuple[str, str]] = []
        pending = list(names)
        for in_full in (False, True):
            delivery.send_afresh(in_full)
            bases = {name: None if in_full else self._proofs.holds(name) for name in pending}
            answers = await delivery.offer(bases)
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


def _published(
    delivery: StoreDelivery,
    passed: dict[str, Answer],
    retired: tuple[str, ...],
    problems: Sequence[tuple[str, str]],
) -> Published:
    probes = [answer.probe for answer in passed.values()]
    return Published(
        version=delivery.report.update.version,
        probe_gap=max(largest_gap(probe, delivery.report.probe) for probe in probes),
        retired=retired,
        engine_gap=widest_gap(probes),
        num_bytes=delivery.num_bytes,
        resent=delivery.resent,
        problems=tuple(problems),
        rows=delivery.rows,
    )
