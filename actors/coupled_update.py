"""One optimizer update by a loss that couples rows, as a rank sees it.

Owns which rows go through the model together, and what ranks tell one another. Where every unit
lies in one micro-batch its loss is made of that micro-batch's own statistics. Where any is split,
over micro-batches or ranks, a pass without gradients gives each row's scalar first, the ranks
exchange them, and all rows get their coefficients from the same scalars. A loss that needs all of
an update at once counts as split wherever the update is. The losses are
`manta.algorithms.coupled_losses`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from manta.actors.micro_batches import micro_batches, unit_batches
from manta.actors.rows import Row
from manta.actors.sharding import IntArray
from manta.algorithms.catalogue import LOSS_KINDS
from manta.algorithms.coupled import Coupling, Scalars, Units, couple, row_scalars
from manta.algorithms.coupled_losses import LOSSES
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.settings import LABEL_LOSSES, AlgorithmSettings
from manta.algorithms.tokens import LossTerms, TokenBatch
from manta.envs.records import COMPANION
from manta.envs.step_records import StepPlan


def units_of(settings: AlgorithmSettings, plan: StepPlan, rows: IntArray) -> Units:
    """The units of the update that trains `rows` (plan indices, all ranks'): of a loss that reads
    labels these rows, with `unit: group` all of a group together, else the plan's pairs among them.
    Every unit weighs the same, or with `unit: group` every group, shared among its pairs."""
    if settings.loss in LABEL_LOSSES:
        return _labelled(settings, plan, rows)
    among = np.isin(plan.pair_P2, rows).all(axis=1)
    pair_U2 = torch.from_numpy(plan.pair_P2[among].astype(np.int64))
    num_units = len(pair_U2)
    group_U = torch.from_numpy(plan.group_N.astype(np.int64))[pair_U2[:, 0]]
    weight_U = torch.full((num_units,), 1.0 / max(1, num_units), dtype=torch.float64)
    if settings.unit == "group":
        _, place_U, pairs_G = torch.unique(group_U, return_inverse=True, return_counts=True)
        weight_U = 1.0 / (pairs_G[place_U].double() * max(1, len(pairs_G)))
    return Units(
        row_M=pair_U2.flatten(),
        unit_M=torch.arange(num_units).repeat_interleave(2),
        label_M=torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(num_units),
        margin_U=torch.from_numpy(plan.margin_P[among].astype(np.float64)),
        weight_U=weight_U,
        is_companion_M=torch.from_numpy(plan.sample_N == COMPANION)[pair_U2.flatten()],
    )


def _labelled(settings: AlgorithmSettings, plan: StepPlan, rows: IntArray) -> Units:
    """By their labels: every row a unit of its own, or every group."""
    unit_M, count = torch.arange(len(rows)), len(rows)
    if settings.unit == "group":
        names, places = np.unique(plan.group_N[rows], return_inverse=True)
        unit_M, count = torch.from_numpy(places.astype(np.int64)), len(names)
    return Units(
        row_M=torch.from_numpy(rows.astype(np.int64)),
        unit_M=unit_M,
        label_M=torch.from_numpy(plan.coefficients["label"][rows].astype(np.float64)),
        margin_U=torch.zeros(count, dtype=torch.float64),
        weight_U=torch.full((count,), 1.0 / max(1, count), dtype=torch.float64),
    )


class CoupledUpdate:
    """An update over `whole`, plan indices of which this rank has `rows`."""

    def __init__(
        self,
        settings: AlgorithmSettings,
        plan: StepPlan,
        whole: IntArray,
        rows: Sequence[Row],
        tokens_per_micro_batch: int,
    ) -> None:
        whole = whole[plan.num_tokens_N[whole] > 0]
        self._settings = settings
        self._whole = torch.from_numpy(whole.astype(np.int64))
        self._units = units_of(settings, plan, whole)
        self._rows = rows
        self._exchanged: Coupling | None = None
        if settings.unit == "row":
            self.micro_batches = micro_batches(rows, tokens_per_micro_batch)
        else:
            unit_of = {row.index: int(plan.unit_N[row.index]) for row in rows}
            self.micro_batches = unit_batches(rows, unit_of, tokens_per_micro_batch)
        kind = LOSSES[settings.loss]
        self._needs_update = kind.needs_update
        self._needs_start = LOSS_KINDS[settings.loss].needs_start
        self.scalar = kind.scalar
        """The want whose sum over a row is the row's scalar."""

    def is_split(self, all_reduce: AllReduce) -> bool:
        """Whether any unit is, on any rank; the same on all. Every rank must ask."""
        own = 0
        for batch in self.micro_batches:
            rows = _indices(batch)
            touched = len(self._units.touching(rows))
            own += touched - len(self._units.within(rows).weight_U)
        if self._needs_update:
            own += len(self.micro_batches) > 1 or len(self._rows) < len(self._whole)
        return bool(all_reduce(torch.tensor([float(own)], dtype=torch.float64)) > 0)

    def exchange(self, batch: TokenBatch, statistic_T: Tensor, all_reduce: AllReduce) -> None:
        """Takes the scalars of all ranks' rows from `statistic_T`, this rank's over the tokens of
        its rows, in their order, before the update; `batch` are the same tokens. Every rank must
        call it, also one without rows."""
        own = self._scalars(self._rows, batch, statistic_T)
        places = torch.searchsorted(self._whole, _indices(self._rows))
        # Whether a row has a reference is told beside it: a sum of zeros would pass for one.
        columns = torch.zeros(4, len(self._whole), dtype=torch.float64)
        columns[0, places], columns[1, places] = own.scalar_R, own.num_tokens_R
        if own.reference_R is not None:
            columns[2, places], columns[3, places] = own.reference_R, 1.0
        total = all_reduce(columns)
        reference = total[2] if bool((total[3] > 0).all()) else None
        scalars = Scalars(total[0], reference, total[1])
        self._exchanged = couple(self._settings, self._units, self._whole, scalars)

    def loss(
        self, rows: Sequence[Row], batch: TokenBatch, stats: Mapping[str, Tensor]
    ) -> LossTerms:
        """The share of a micro-batch: `batch` are the tokens of `rows`, `stats` their statistics
        with gradients. Raises ValueError as the loss does."""
        statistic_T, indices = stats[self.scalar], _indices(rows)
        if self._exchanged is not None:
            coupling = self._exchanged.at(torch.searchsorted(self._whole, indices))
        else:
            scalars = self._scalars(rows, batch, statistic_T)
            coupling = couple(self._settings, self._units.within(indices), indices, scalars)
        return coupling.terms(statistic_T, batch.row_T)

    def _scalars(self, rows: Sequence[Row], batch: TokenBatch, statistic_T: Tensor) -> Scalars:
        counts = torch.tensor([row.num_tokens for row in rows], dtype=torch.int64)
        other_T = batch.reference_T
        if self._needs_start:
            other_T = batch.start_T
        return row_scalars(statistic_T.cpu(), other_T, counts)


def _indices(rows: Sequence[Row]) -> Tensor:
    return torch.tensor([row.index for row in rows], dtype=torch.int64)
