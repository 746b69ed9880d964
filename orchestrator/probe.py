"""The probe: log-probs of fixed tokens, and what they prove about the weights that engines serve.

Owns the rows, the comparison of answers, and the memory of what each engine answered last. Sends
nothing; what follows from a problem is `manta.orchestrator.publish`'s decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from manta.actors.step_work import StepReport
from manta.actors.transports.protocol import Delivery
from manta.envs.records import Float32, Int32

PROBE_SEED = 20260101
MOVES_AT_LEAST = 0.1
"""Of the learner's own movement: an engine with the learner's new weights moves about as far, one
with its old ones not at all."""


def probe_rows(vocab_size: int, context: int) -> tuple[Int32, ...]:
    """Four fixed rows of random tokens, of different lengths."""
    generator = np.random.default_rng(PROBE_SEED)
    lengths = [min(context, length) for length in (5, 9, 17, 24)]
    return tuple(generator.integers(0, vocab_size, length, dtype=np.int32) for length in lengths)


def largest_gap(ours: Sequence[Float32], theirs: Sequence[Float32]) -> float:
    """max |a - b| over all rows; infinite where anything is not finite, or shapes differ."""
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return float("inf")
    with np.errstate(invalid="ignore"):  # inf - inf: NaN, and told as such below
        gap = float(np.max(np.abs(np.concatenate(ours) - np.concatenate(theirs))))
    return gap if np.isfinite(gap) else float("inf")


def widest_gap(probes: Sequence[Sequence[Float32]]) -> float:
    """max |a - b| over all rows of every two `probes`, in one pass over them; infinite as in
    `largest_gap`."""
    lengths = {tuple(len(row) for row in probe) for probe in probes}
    if len(lengths) != 1:
        return float("inf")
    stacked = np.stack([np.concatenate(probe) for probe in probes])
    if not np.isfinite(stacked).all():
        return float("inf")
    return float(np.max(stacked.max(axis=0) - stacked.min(axis=0)))


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Of log-probs: |engine - learner| and |engine - engine|."""

    learner: float
    engines: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine showed after a delivery; `probe` is empty where its receipt is wrong."""

    delivery: Delivery
    probe: tuple[Float32, ...]


@dataclass(frozen=True, slots=True)
class _Before:
    """The hash of the weights that an engine proved last; its log-probs and the learner's from
    which movement is measured."""

    weights_hash: str
    probe: tuple[Float32, ...]
    learner: tuple[Float32, ...]


class Proofs:
    """Judges answers one publish after the other. An engine passes if

    - its receipt has the learner's hash and version;
    - its log-probs are the learner's to `tolerances.learner`;
    - they moved since its last proof, if the weights' hash changed and the learner's own log-probs
      moved by more than `tolerances.engines`. Less may be rounding: there the receipt alone proves
      the change, until small movements have added up to more;
    - they are those of its peers to `tolerances.engines`: of the engine that is nearest to the
      learner among those that pass so far.
    """

    def __init__(self, tolerances: Tolerances) -> None:
        self._tolerances = tolerances
        self._before: dict[str, _Before] = {}

    def holds(self, name: str) -> str | None:
        """The hash of the weights that engine `name` proved to have last."""
        return self._before[name].weights_hash if name in self._before else None

    def forget(self, name: str) -> None:
        self._before.pop(name, None)

    def accept(self, name: str, answer: Answer, report: StepReport) -> None:
        """Engine `name` has passed. Its next movement is measured from here, or, where the
        learner's was too small to be seen, from where it was, so that small steps add up."""
        before = self._before.get(name)
        start = (answer.probe, report.probe)
        if before and largest_gap(before.learner, report.probe) <= self._tolerances.engines:
            start = (before.probe, before.learner)
        self._before[name] = _Before(report.update.weights_hash, *start)

    def problems(
        self, answers: Mapping[str, Answer], passed: Mapping[str, Answer], report: StepReport
    ) -> dict[str, str]:
        """What is wrong with which of `answers`; `passed` are of peers in this same publish."""
        found = {name: self._problem(name, answer, report) for name, answer in answers.items()}
        good = {name: answer for name, answer in answers.items() if not found[name]}
        # A peer that has passed is serving already: it is the standard, whoever is nearer now
        pool = passed or good
        nearest = min(
            pool, key=lambda name: largest_gap(pool[name].probe, report.probe), default=""
        )
        for name, answer in good.items():
            gap = largest_gap(answer.probe, pool[nearest].probe)
            if gap > self._tolerances.engines:
                found[name] = (
                    f"its log-probs differ by {gap:.3g} from engine {nearest}'s, more than "
                    f"publish.engine_tolerance ({self._tolerances.engines:g})"
                )
        return {name: problem for name, problem in found.items() if problem}

    def _problem(self, name: str, answer: Answer, report: StepReport) -> str:
        """What is wrong with an answer by itself; empty if nothing is."""
        receipt, update = answer.delivery.receipt, report.update
        if answer.delivery.refusal:
            return answer.delivery.refusal
        if (receipt.version, receipt.sha256) != (update.version, update.weights_hash):
            return (
                f"its receipt is for weights {receipt.version} with hash {receipt.sha256[:12]}, "
                f"not {update.version} with {update.weights_hash[:12]}"
            )
        gap = largest_gap(answer.probe, report.probe)
        if gap > self._tolerances.learner:
            return (
                f"its log-probs differ by {gap:.3g} from the learner's, more than "
                f"publish.probe_tolerance ({self._tolerances.learner:g})"
            )
        before = self._before.get(name)
        if before is None or before.weights_hash == update.weights_hash:
            return ""
        learner_moved = largest_gap(before.learner, report.probe)
        moved = largest_gap(before.probe, answer.probe)
        if learner_moved > self._tolerances.engines and moved < MOVES_AT_LEAST * learner_moved:
            return (
                f"its log-probs moved by {moved:.3g}, the learner's by {learner_moved:.3g}: it "
                "serves the weights that it had before"
            )
        return ""
