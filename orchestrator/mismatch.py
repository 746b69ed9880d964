"""The guard over the mismatch between engine and learner: from a step's figures to what to do.

`MismatchGuard` decides, `MismatchWatch` acts on it in the step loop. Only tokens sampled under the
weights that the learner holds count, since stale ones differ by what was learnt in between. How the
figures are measured is `manta.algorithms.mismatch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from manta.actors.step_work import StepReport
from manta.orchestrator.config import MismatchGuardConfig
from manta.orchestrator.metrics import LOGPROB_GAP, MISMATCH_KL
from manta.orchestrator.publish import Publisher
from manta.orchestrator.recorder import Recorder
from manta.orchestrator.wait import DeadlineMissed, Waits

WHAT_TO_TRY = (
    "Compare rollout.temperature and the model's dtype on both sides, look at the engine's "
    "log-probs with publish.probe_tolerance lowered, let the learner correct for it "
    "(algorithm.off_policy), or raise mismatch_guard.limit_kl and resume"
)


class MismatchTooLarge(RuntimeError):
    """Engine and learner give the same tokens too different probabilities under equal weights."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A mismatch worth telling: `text` says in words what, how large, and which engine."""

    text: str
    kl: float
    gap_max: float
    ends_run: bool


class MismatchGuard:
    """`engine` is the kind of the engine that sampled. The simulated one makes its log-probs up: of
    it there is nothing to say."""

    def __init__(self, config: MismatchGuardConfig, engine: str) -> None:
        self._config = config
        self._engine = engine
        self._told = 0.0

    def judge(
        self, step: int, metrics: Mapping[str, float], probe_gaps: Mapping[str, float]
    ) -> Finding | None:
        """What there is to say of `step`; None where the mismatch is small, not known, or at most
        twice as large as what was told before without a step below `warn_kl` in between.

        `metrics` are the learner's; `probe_gaps` of the last publish, by engine worker, only go
        into the words. A figure that is not a number is over the limit.
        """
        if MISMATCH_KL not in metrics or self._engine == "simulated":
            return None
        kl, gap_max = metrics[MISMATCH_KL], metrics[LOGPROB_GAP]
        if kl <= self._config.warn_kl:
            self._told = 0.0
            return None
        ends_run = self._config.action != "warn" and not kl <= self._config.limit_kl
        if not ends_run and kl <= 2 * self._told:
            return None
        self._told = kl
        return Finding(self._words(step, kl, gap_max, probe_gaps), kl, gap_max, ends_run)

    def _words(self, step: int, kl: float, gap_max: float, probe_gaps: Mapping[str, float]) -> str:
        name = "warn_kl" if kl <= self._config.limit_kl else "limit_kl"
        bound = self._config.warn_kl if name == "warn_kl" else self._config.limit_kl
        words = (
            f"step {step}: engine policy ({self._engine}) and learner disagree under equal "
            f"weights: KL {kl:.3g} per token (mismatch_guard.{name} is {bound:g}), log-probs up "
            f"to {gap_max:.3g} apart"
        )
        if not probe_gaps:
            return words
        probes = ", ".join(f"{worker} {gap:.2g}" for worker, gap in probe_gaps.items())
        return f"{words}; probe gaps at the last publish: {probes}"


class MismatchWatch:
    """Tells what the guard finds, and ends the run past the limit."""

    def __init__(
        self,
        config: MismatchGuardConfig,
        engine: str,
        publisher: Publisher,
        recorder: Recorder,
        waits: Waits,
        should_stop: asyncio.Event,
        deadline_seconds: float,
    ) -> None:
        self._action = config.action
        self._guard = MismatchGuard(config, engine)
        self._publisher, self._recorder, self._waits = publisher, recorder, waits
        self._should_stop, self._deadline = should_stop, deadline_seconds

    async def __call__(self, report: StepReport) -> None:
        """Raises MismatchTooLarge where the run must not go on; with `pause_publish` only once it
        is asked to stop, or the deadline is over, and all workers can be looked at until then."""
        update = report.update
        finding = self._guard.judge(update.version.step, update.metrics, self._publisher.gaps)
        if finding is None:
            return
        fields = {"step": update.version.step, "kl": finding.kl, "gap_max": finding.gap_max}
        self._recorder.event("mismatch between engine and learner", fields, finding.text)
        if not finding.ends_run:
            return
        if self._action == "pause_publish":
            with suppress(DeadlineMissed):
                await self._waits.wait(
                    f"Ctrl-C: publishing is paused, {finding.text}",
                    self._should_stop.wait(),
                    self._deadline,
                )
        raise MismatchTooLarge(f"{finding.text}. {WHAT_TO_TRY}")
