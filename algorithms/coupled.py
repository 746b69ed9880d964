"""From one number per row to the loss of each unit, and back to the rows.

A loss that couples rows (`manta.algorithms.coupled_losses`) is a function of its members' scalars.
Its derivative by each row's scalar, taken by autograd over the scalars, is the coefficient of an
ordinary weighted backward pass (`Coupling.terms`). The chain rule makes that the gradient of the
loss itself, wherever the rows of a unit are, as long as the scalars are those of the weights that
the backward pass is made with.

Shapes: R rows, U units of M members in all; a row may be a member of several units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manta.algorithms.coupled_losses import LOSSES, Members
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import LossTerms, per_row


@dataclass(frozen=True, slots=True)
class Units:
    """Who belongs to what. `row_M` int64[M] are rows, by any numbers; `unit_M` int64[M] in 0..U-1;
    `label_M` float64[M] is 1 for a preferred or desirable member, else 0; `margin_U` float64[U];
    `weight_U` float64[U] is a unit's share of the update's mean, 1 in sum over the whole update.
    `is_companion_M` bool[M]: rows beside the samples of a prompt (None: there are none)."""

    row_M: Tensor
    unit_M: Tensor
    label_M: Tensor
    margin_U: Tensor
    weight_U: Tensor
    is_companion_M: Tensor | None = None

    def touching(self, rows: Tensor) -> Tensor:
        """int64: the units that have a member among `rows`, ascending."""
        units: Tensor = torch.unique(self.unit_M[torch.isin(self.row_M, rows)])
        return units

    def within(self, rows: Tensor) -> Units:
        """The units all of whose members are among `rows`."""
        outside = torch.unique(self.unit_M[~torch.isin(self.row_M, rows)])
        is_kept_U = torch.ones(len(self.weight_U), dtype=torch.bool)
        is_kept_U[outside] = False
        is_kept_M = is_kept_U[self.unit_M]
        number_U = torch.cumsum(is_kept_U, 0) - 1
        return Units(
            self.row_M[is_kept_M],
            number_U[self.unit_M[is_kept_M]],
            self.label_M[is_kept_M],
            self.margin_U[is_kept_U],
            self.weight_U[is_kept_U],
            None if self.is_companion_M is None else self.is_companion_M[is_kept_M],
        )


@dataclass(frozen=True, slots=True)
class Scalars:
    """Of some rows, float64[R]: `scalar_R`, `reference_R` (None without a reference) and
    `num_tokens_R`."""

    scalar_R: Tensor
    reference_R: Tensor | None
    num_tokens_R: Tensor


def row_scalars(statistic_T: Tensor, reference_T: Tensor | None, num_tokens_R: Tensor) -> Scalars:
    """Sums over each row's tokens, in float64 and without gradients."""
    row_T = torch.repeat_interleave(torch.arange(len(num_tokens_R)), num_tokens_R)
    sums = [
        None if values_T is None else per_row(values_T.detach().double(), row_T, len(num_tokens_R))
        for values_T in (statistic_T, reference_T)
    ]
    assert sums[0] is not None
    return Scalars(sums[0], sums[1], num_tokens_R.double())


@dataclass(frozen=True, slots=True)
class Coupling:
    """What units tell each of R rows. `slope_R` is the derivative of the update's loss by the row's
    scalar. A unit's loss and figures, weighted, stand at the row of its first member (`loss_R`,
    `figures`), so that they add up over micro-batches and ranks. All float64[R]. `reports` is what
    figures are of, `pairs` or `labels`."""

    slope_R: Tensor
    loss_R: Tensor
    figures: Mapping[str, Tensor]
    reports: str

    def at(self, places: Tensor) -> Coupling:
        """Of the rows at int64 `places` alone."""
        figures = {name: values_R[places] for name, values_R in self.figures.items()}
        return Coupling(self.slope_R[places], self.loss_R[places], figures, self.reports)

    def terms(self, statistic_T: Tensor, row_T: Tensor) -> LossTerms:
        """The rows' share of the loss, from their tokens' statistic [T] with gradients: its value
        is that of the units, its gradient the sum of `slope` times that of each row's scalar.

        `sums`: `loss`, and `REPORTS/NAME` for each figure, which add up to means over the units.
        """
        linear = (self.slope_R.to(statistic_T.dtype)[row_T] * statistic_T).sum()
        value = self.loss_R.sum()
        loss = linear - linear.detach() + value.to(linear.dtype)
        sums = {f"{self.reports}/{name}": values_R.sum() for name, values_R in self.figures.items()}
        return LossTerms(loss, {"loss": value, **sums}, {})


def couple(settings: AlgorithmSettings, units: Units, rows: Tensor, scalars: Scalars) -> Coupling:
    """The coupling of `units` among `rows` (int64[R], the numbers that units name rows by), whose
    scalars are given.

    Raises ValueError as the loss does. Every member of every unit must be among the rows; of a loss
    that `needs_update`, all units of the update.
    """
    kind = LOSSES[settings.loss]
    order_R = torch.argsort(rows)
    place_M = order_R[torch.searchsorted(rows[order_R], units.row_M)]
    with torch.enable_grad():
        scalar_R = scalars.scalar_R.detach().requires_grad_()
        reference_R = scalars.reference_R
        members = Members(
            scalar_R[place_M],
            None if reference_R is None else reference_R[place_M],
            scalars.num_tokens_R[place_M],
            units.label_M,
            units.unit_M,
            units.margin_U,
            units.is_companion_M,
        )
        found = kind.loss(settings, members)
        weighted_U = units.weight_U * found.loss_U
        (slope_R,) = torch.autograd.grad(weighted_U.sum(), scalar_R)
    first_U = _first(units.unit_M, len(units.weight_U))

    def at_first(values_U: Tensor) -> Tensor:
        zeros_R = torch.zeros_like(slope_R)
        return zeros_R.index_add(0, place_M[first_U], values_U.detach())

    figures = {name: at_first(units.weight_U * each_U) for name, each_U in found.figures.items()}
    return Coupling(slope_R, at_first(weighted_U), figures, kind.reports)


def _first(unit_M: Tensor, num_units: int) -> Tensor:
    """int64[U]: the first member of each unit."""
    member_M = torch.arange(len(unit_M))
    return torch.zeros(num_units, dtype=torch.int64).scatter_reduce(
        0, unit_M, member_M, "amin", include_self=False
    )
