"""Publish: transfer -> pause -> load -> verify -> resume, on every engine, once a step at most.

Two proofs before an engine's samples count. Receipt: the hash that the engine's process computed
over all the bytes it ends up with equals the learner's. Probe: log-probs of fixed tokens, see
`manta.orchestrator.probe`. An engine first gets a delta, where what it proved to hold is what the
learner's delta starts from. After a mismatch it gets the weights in full; a second mismatch takes
it out of service, by name. The driver handles references to parcels only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

import ray

from manta.actors.engines.occupancy import NOT_COUNTED, RowSeconds
from manta.actors.step_work import StepReport
from manta.actors.weight_store import WeightsReplaced
from manta.envs.records import Int32, WeightVersion
from manta.envs.side_by_side import side_by_side
from manta.orchestrator.delivery import StoreDelivery
from manta.orchestrator.direct_delivery import DirectDelivery
from manta.orchestrator.pools import MailboxClient
from manta.orchestrator.probe import Answer, Proofs, Tolerances, largest_gap, widest_gap
from manta.orchestrator.rollout_pool import RolloutPool
from manta.orchestrator.wait import Waits

DIED = "it died"


class NoEngineLeft(RuntimeError):
    """Every engine failed verification, and none is replaced."""


class EnginesDied(NoEngineLeft):
    """Every engine has died, and none is replaced."""


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


@dataclass(slots=True)
class _Outcome:
    """Of the engines asked so far: those that passed, what was wrong with whom, and who was taken
    out of service."""

    passed: dict[str, Answer] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)


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
        self._report: StepReport | None = None
        self._peers: dict[str, Answer] = {}
        """What the living engines showed of the newest weights."""
        self._has_begun = False
        self._changed = asyncio.Condition()
        self._lock = asyncio.Lock()
        """Held while engines take weights: one thing at a time happens to an engine."""
        self.gaps: dict[str, float] = {}
        """The probe gap of every engine that holds the newest weights."""

    async def publish(self, report: StepReport) -> Published:
        """Brings the learner's weights of `report` to every engine and proves it.

        Where none passes and engines are replaced, it waits for the new ones. Raises NoEngineLeft
        where none passes and they are not.
        """
        async with self._lock:
            delivery = self._delivery(report)
            with self._turn():
                names = ", ".join(self._rollout.take_in()) or "that are being replaced"
                outcome = await self._waits.wait(
                    f"engines {names} to take weights {report.update.version}",
                    self._bring_to_all(delivery),
                    self._deadline,
                )
            self._report, self._peers = report, outcome.passed
            self._note_gaps()
            await self._tell()
            return _published(delivery, outcome)

    async def serve_own(self) -> None:
        """For runs without a learner: engines serve the weights that they built."""
        async with self._lock:
            self._rollout.take_in()
            await self._rollout.serve_all()
            await self._tell()

    async def welcome(self, name: str) -> None:
        """Brings the newest weights to an engine that has come up, and proves it; returns once it
        holds them, be it by a publish that came first.

        Raises RayActorError where it dies, or its weights are refused twice.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_begun)
        async with self._lock:
            if name not in self._rollout.take_in():
                raise ray.exceptions.ActorDiedError
            if name in self._peers:
                return
            if self._report is None:
                await self._rollout.serve(name)
                return
            if await self._is_welcome(name, self._report):
                return
        # Newer weights are on their way already: the publish that they wait for takes it along
        await self._taken_along(name)

    async def dismiss(self, name: str) -> None:
        """Ends an engine that is not wanted any more, and not in the middle of a publish."""
        async with self._lock:
            await self._retire(name)

    def forget(self, name: str) -> None:
        """The engine is gone: what it has proved is not the next one's of that name."""
        self._proofs.forget(name)
        self._peers.pop(name, None)
        self.gaps.pop(name, None)

    async def _is_welcome(self, name: str, report: StepReport) -> bool:
        """Whether the newest weights are still there to bring; where they were, it has them."""
        delivery = StoreDelivery(self._rollout, self._client, self._probe, report)
        outcome = _Outcome(dict(self._peers))
        try:
            await self._waits.wait(
                f"engine {name} to take weights {report.update.version}",
                self._bring([name], delivery, outcome),
                self._deadline,
            )
        except WeightsReplaced:
            return False
        if name not in outcome.passed:
            raise ray.exceptions.ActorDiedError
        self._peers = outcome.passed
        self._note_gaps()
        return True

    async def _taken_along(self, name: str) -> None:
        async with self._changed:
            await self._changed.wait_for(
                lambda: name in self._peers or name not in self._rollout.names
            )
        if name not in self._peers:
            raise ray.exceptions.ActorDiedError

    async def _tell(self) -> None:
        self._has_begun = True
        async with self._changed:
            self._changed.notify_all()

    def _delivery(self, report: StepReport) -> StoreDelivery:
        parts = (self._rollout, self._client, self._probe, report)
        if self._is_direct:
            return DirectDelivery(*parts, self._orders)
        return StoreDelivery(*parts, self._report.update.weights_hash if self._report else None)

    async def _bring_to_all(self, delivery: StoreDelivery) -> _Outcome:
        outcome = _Outcome()
        while True:
            await self._bring(self._rollout.take_in(), delivery, outcome)
            if outcome.passed:
                return outcome
            if not self._rollout.is_kept:
                told = "; ".join(f"{name}: {problem}" for name, problem in outcome.problems)
                have_died = all(problem == DIED for _, problem in outcome.problems)
                kind = EnginesDied if have_died else NoEngineLeft
                raise kind(
                    f"no engine proved that it serves weights {delivery.report.update.version}: "
                    f"{told or 'there is none'}"
                )
            await self._rollout.arrival()

    async def _bring(
        self, names: Sequence[str], delivery: StoreDelivery, outcome: _Outcome
    ) -> None:
        """Brings the weights to `names`, and adds to `outcome` what became of each."""
        report, passed = delivery.report, outcome.passed
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
            outcome.problems += wrong.items()
            pending = [name for name, problem in wrong.items() if problem != DIED]
            if not pending:
                break
        retired = [name for name in names if name not in passed]
        await side_by_side([self._retire(name) for name in retired])
        outcome.retired += retired

    async def _take_up(self, name: str) -> bool:
        """Resumes a verified engine and takes it into service; False if it died."""
        with suppress(ray.exceptions.RayActorError):
            await self._rollout.resume(name)
            await self._rollout.serve(name)
            return True
        return False

    async def _retire(self, name: str) -> None:
        self.forget(name)
        await self._rollout.retire(name)

    def _note_gaps(self) -> None:
        assert self._report is not None
        self.gaps = {
            name: largest_gap(answer.probe, self._report.probe)
            for name, answer in self._peers.items()
        }


def _published(delivery: StoreDelivery, outcome: _Outcome) -> Published:
    probes = [answer.probe for answer in outcome.passed.values()]
    return Published(
        version=delivery.report.update.version,
        probe_gap=max(largest_gap(probe, delivery.report.probe) for probe in probes),
        retired=tuple(outcome.retired),
        engine_gap=widest_gap(probes),
        num_bytes=delivery.num_bytes,
        resent=delivery.resent,
        problems=tuple(outcome.problems),
        rows=delivery.rows,
    )
