"""Publish: pause -> transfer -> verify -> resume, on every engine, once per step at most.

Two proofs before an engine's samples count. Receipt: the hash that the engine's process computed
over the bytes it was handed equals the learner's. Probe: log-probs of fixed tokens are close to the
learner's own. A mismatch re-sends once; a second one takes the engine out of service, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import ray

from manta.actors.engines.occupancy import NOT_COUNTED, RowSeconds
from manta.actors.mailbox import StepReport
from manta.actors.weights import Receipt, Weights
from manta.envs.records import Float32, Int32, WeightVersion
from manta.envs.side_by_side import side_by_side
from manta.orchestrator.pools import MailboxClient, RolloutPool
from manta.orchestrator.wait import Waits

PROBE_SEED = 20260101


class NoEngineLeft(RuntimeError):
    """Every engine failed verification."""


@dataclass(frozen=True, slots=True)
class Published:
    """`probe_gap`: largest |engine - learner| over the probe's log-probs and all engines. `rows`:
    how busy their rows were since the publish before."""

    version: WeightVersion
    probe_gap: float
    retired: tuple[str, ...]
    rows: RowSeconds = NOT_COUNTED


def probe_rows(vocab_size: int, context: int) -> tuple[Int32, ...]:
    """Four fixed rows of random tokens, of different lengths."""
    generator = np.random.default_rng(PROBE_SEED)
    lengths = [min(context, length) for length in (5, 9, 17, 24)]
    return tuple(generator.integers(0, vocab_size, length, dtype=np.int32) for length in lengths)


class Publisher:
    def __init__(
        self,
        rollout: RolloutPool,
        client: MailboxClient,
        probe: Sequence[Int32],
        tolerance: float,
        waits: Waits,
        deadline_seconds: float,
    ) -> None:
        self._rollout, self._client, self._probe = rollout, client, probe
        self._tolerance, self._waits, self._deadline = tolerance, waits, deadline_seconds
        self.gaps: dict[str, float] = {}
        """The probe gap of every engine that passed the last publish."""
        self._rows = NOT_COUNTED

    async def publish(self, report: StepReport) -> Published:
        """Brings the learner's weights of `report` to every engine and proves it.

        Raises NoEngineLeft where no engine passes.
        """
        weights = self._client.weights(report.update.version)
        names = self._rollout.names
        self._rows = NOT_COUNTED
        gaps = await self._waits.wait(
            f"engines {', '.join(names)} to take weights {report.update.version}",
            side_by_side([self._deliver(name, weights, report) for name in names]),
            self._deadline,
        )
        retired = tuple(n for n, gap in zip(names, gaps, strict=True) if gap is None)
        self.gaps = {n: gap for n, gap in zip(names, gaps, strict=True) if gap is not None}
        if not self.gaps:
            raise NoEngineLeft(
                f"no engine proved that it serves weights {report.update.version} "
                f"(probe tolerance {self._tolerance:g}): {', '.join(retired) or 'there is none'}"
            )
        return Published(report.update.version, max(self.gaps.values()), retired, self._rows)

    async def _deliver(
        self, name: str, weights: ray.ObjectRef[Weights], report: StepReport
    ) -> float | None:
        """The engine's probe gap, or None once it is out of service: it failed twice, or died."""
        with suppress(ray.exceptions.RayActorError):
            for _attempt in range(2):
                gap = await self._offer(name, weights, report)
                if gap <= self._tolerance:
                    await self._rollout.resume(name)
                    await self._rollout.serve(name)
                    return gap
        await self._rollout.retire(name)
        return None

    async def _offer(self, name: str, weights: ray.ObjectRef[Weights], report: StepReport) -> float:
        """Loads `weights` into the paused engine; its probe gap, infinite for a wrong receipt."""
        rows = await self._rollout.pause(name)
        self._rows += rows
        receipt = await self._rollout.load(name, weights)
        if receipt != Receipt(report.update.version, report.update.weights_hash):
            return float("inf")
        return largest_gap(await self._rollout.logprobs(name, self._probe), report.probe)


def largest_gap(ours: Sequence[Float32], theirs: Sequence[Float32]) -> float:
    """max |a - b| over all rows; infinite where anything is not finite, or shapes differ."""
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return float("inf")
    with np.errstate(invalid="ignore"):  # inf - inf: NaN, and told as such below
        gap = float(np.max(np.abs(np.concatenate(ours) - np.concatenate(theirs))))
    return gap if np.isfinite(gap) else float("inf")
