"""What a step does with the implicit reward model, as a rank sees it: it scores, and it learns.

Owns which of the two comes first, the model's updates and what they report. The formulas are
`manta.algorithms.implicit_reward`'s, how parameters move is the backend's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from manta.actors.backends.protocol import Backend, HoldsResidents
from manta.actors.backends.settings import PROCESS
from manta.actors.micro_batches import micro_batches
from manta.actors.plan_tensors import denominators_of, places_of
from manta.actors.rows import Row
from manta.actors.sharding import IntArray
from manta.algorithms.aggregate import row_weight
from manta.algorithms.implicit_reward import (
    ProcessRewards,
    outcome_loss,
    process_rewards,
    token_rewards,
)
from manta.algorithms.part_settings import ImplicitRewardSettings
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.tokens import LossTerms
from manta.envs.step_records import StepPlan


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """`reward_T` float32[T]: what each token of this rank's rows is rewarded with, less its
    baseline (None without a model). Equal on all ranks: `figures`, by the names that are reported,
    and `skipped_updates`, those of the model that were not finite."""

    reward_T: Tensor | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    skipped_updates: int = 0


NO_PROCESS = ProcessReport()


class ProcessStep:
    """A step of `plan` for the model that `backend` holds, as `PROCESS`."""

    def __init__(
        self,
        settings: ImplicitRewardSettings,
        backend: Backend,
        temperature: float,
        tokens_per_micro_batch: int,
        plan: StepPlan,
        all_reduce: AllReduce,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._temperature = temperature
        self._tokens_per_micro_batch = tokens_per_micro_batch
        self._plan = plan
        self._all_reduce = all_reduce

    def run(
        self, parts: Sequence[tuple[Sequence[Row], IntArray]], learning_rate: float
    ) -> ProcessReport:
        """Scores the step and learns from it, in the order that the settings say.

        `parts` are this rank's rows of an update, and which rows of the plan all ranks' are. The
        model makes one update for each in which anything trains, however many epochs the policy
        makes. Every rank must call it. Figures: `process/loss`, `process/accuracy` and
        `process/grad_norm`, means over the updates that were applied, and `process/reward_mean`, of
        all tokens' rewards before the baseline.

        Raises ValueError where a row has no reference log-probs.
        """
        rows = [row for share, _ in parts for row in share]
        if self._settings.scores == "before":
            scored = self._score(rows)
            reports = self._learn(parts, learning_rate)
        else:
            reports = self._learn(parts, learning_rate)
            scored = self._score(rows)
        means = {} if scored.mean is None else {f"{PROCESS}/reward_mean": scored.mean}
        skipped = sum(int(report["skipped_updates"]) for report in reports)
        return ProcessReport(scored.reward_T.float(), {**_means(reports), **means}, skipped)

    def _score(self, rows: Sequence[Row]) -> ProcessRewards:
        found = self._backend.evaluate(rows, ("process_logprob",), self._temperature)
        logprob_T = found["process_logprob"].cpu()
        reward_T = token_rewards(self._settings.beta, logprob_T, _reference(rows))
        places = places_of(self._plan, rows)
        return process_rewards(self._settings, reward_T, _row_T(rows), places, self._all_reduce)

    def _learn(
        self, parts: Sequence[tuple[Sequence[Row], IntArray]], learning_rate: float
    ) -> list[Mapping[str, float]]:
        assert isinstance(self._backend, HoldsResidents)
        reports: list[Mapping[str, float]] = []
        for rows, whole in parts:
            if self._plan.num_tokens_N[whole].any():
                total_rows = denominators_of(self._plan, whole).total_rows
                report = self._backend.update_each(
                    micro_batches(rows, self._tokens_per_micro_batch),
                    ("process_logprob",),
                    self._temperature,
                    _OutcomeLoss(self._settings.beta, total_rows),
                    {PROCESS: learning_rate},
                )
                reports.append(report)
        return reports


def _means(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    applied = [report for report in reports if not report["skipped_updates"]]
    names = {name: None for report in applied for name in report if name.startswith(f"{PROCESS}/")}
    return {name: math.fsum(report[name] for report in applied) / len(applied) for name in names}


class _OutcomeLoss:
    """Of an update whose rows weigh `total_rows` in all."""

    def __init__(self, beta: float, total_rows: float) -> None:
        self._beta = beta
        self._total_rows = total_rows

    def __call__(self, rows: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
        reward_T = token_rewards(self._beta, stats["process_logprob"].cpu(), _reference(rows))
        columns = {
            name: torch.tensor([row.coefficients[name] for row in rows], dtype=torch.float64)
            for name in rows[0].coefficients
        }
        weight_R = row_weight(columns) / self._total_rows
        return outcome_loss(reward_T, _row_T(rows), columns["label"], weight_R)


def _row_T(rows: Sequence[Row]) -> Tensor:
    counts = torch.tensor([row.num_tokens for row in rows], dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(len(rows)), counts)


def _reference(rows: Sequence[Row]) -> Tensor:
    """float32[T] of the rows' trained tokens."""
    parts = [np.zeros(0, np.float32)]
    for row in rows:
        if row.reference_logprobs is None:
            raise ValueError(
                "implicit_reward compares its model with a reference, and these rows have no "
                "reference log-probs: run reference workers, or set implicit_reward to null"
            )
        parts.append(row.reference_logprobs[row.loss_mask])
    return torch.from_numpy(np.concatenate(parts))
