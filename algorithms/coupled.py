"""Losses that couple rows: from one number per row to the loss of each unit, and back.

A coupled loss is one function of its members' scalars (`Members`), registered in `LOSSES` with the
token statistic whose sum over a row is the row's scalar. It sees units alone: neither tokens, nor
ranks, nor micro-batches. Its derivative by each row's scalar, taken by autograd over the scalars,
is the coefficient of an ordinary weighted backward pass (`Coupling.terms`). The chain rule makes
that the gradient of the loss itself, wherever the rows of a unit are, as long as the scalars are
those of the weights that the backward pass is made with.

Shapes: R rows, U units of M members in all; a row may be a member of several units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import LossTerms, per_row


@dataclass(frozen=True, slots=True)
class Units:
    """Who belongs to what. `row_M` int64[M] are rows, by any numbers; `unit_M` int64[M] in 0..U-1;
    `label_M` float64[M] is 1 for a preferred member, else 0; `margin_U` float64[U]; `weight_U`
    float64[U] is a unit's share of the update's mean, 1 in sum over the whole update."""

    row_M: Tensor
    unit_M: Tensor
    label_M: Tensor
    margin_U: Tensor
    weight_U: Tensor

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
        )


@dataclass(frozen=True, slots=True)
class Members:
    """What a coupled loss sees: float64[M] `scalar_M` (carries gradients), `reference_M`, the same
    of the reference policy (None without one), `num_tokens_M`, `label_M`; int64[M] `unit_M`;
    float64[U] `margin_U`."""

    scalar_M: Tensor
    reference_M: Tensor | None
    num_tokens_M: Tensor
    label_M: Tensor
    unit_M: Tensor
    margin_U: Tensor

    def total(self, values_M: Tensor) -> Tensor:
        """The sum of `values_M` by unit, [U]."""
        zeros_U = torch.zeros_like(self.margin_U)
        return zeros_U.index_add(0, self.unit_M, values_M)


class UnitTerms(NamedTuple):
    """`loss_U` carries gradients by the scalars; `figures`: what is reported, float64[U] each."""

    loss_U: Tensor
    figures: Mapping[str, Tensor]


CoupledLoss: TypeAlias = Callable[[AlgorithmSettings, Members], UnitTerms]


def dpo(settings: AlgorithmSettings, members: Members) -> UnitTerms:
    """`-log sigmoid(beta (log pi(y_w) - log ref(y_w)) - beta (log pi(y_l) - log ref(y_l)))`:
    Rafailov et al., arXiv 2305.18290, eq. 7. A scalar is the log-prob of a whole answer.

    `chosen` and `rejected` are the implicit rewards `beta (log pi - log ref)`. Raises ValueError
    without a reference.
    """
    if members.reference_M is None:
        raise ValueError(
            "dpo compares the policy with a reference, and these rows have no reference log-probs: "
            "run reference workers"
        )
    implicit_M = settings.beta * (members.scalar_M - members.reference_M)
    return _preference(implicit_M, members, torch.zeros_like(members.margin_U))


def bradley_terry(settings: AlgorithmSettings, members: Members) -> UnitTerms:
    """`-log sigmoid(r_w - r_l - margin)`: Ouyang et al., arXiv 2203.02155, eq. 1, and Stiennon et
    al., arXiv 2009.01325, section 3.4; with a margin Llama 2, arXiv 2307.09288, eq. 2. A scalar is
    the reward model's score."""
    return _preference(members.scalar_M, members, members.margin_U)


def _preference(reward_M: Tensor, members: Members, margin_U: Tensor) -> UnitTerms:
    """The negative log-likelihood of pairs, a preferred member and another one each."""
    chosen_U = members.total(members.label_M * reward_M)
    rejected_U = members.total((1 - members.label_M) * reward_M)
    ahead_U = chosen_U - rejected_U
    figures = {
        "accuracy": (ahead_U > 0).double(),
        "margin": ahead_U,
        "chosen": chosen_U,
        "rejected": rejected_U,
    }
    return UnitTerms(-logsigmoid(ahead_U - margin_U), figures)


class Coupled(NamedTuple):
    """A loss, and the token statistic whose sum over a row it takes as the row's scalar."""

    loss: CoupledLoss
    scalar: Literal["logprob", "score"]


LOSSES: Mapping[str, Coupled] = {
    "dpo": Coupled(dpo, "logprob"),
    "bradley_terry": Coupled(bradley_terry, "score"),
}


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
    `figures`), so that they add up over micro-batches and ranks. All float64[R]."""

    slope_R: Tensor
    loss_R: Tensor
    figures: Mapping[str, Tensor]

    def at(self, places: Tensor) -> Coupling:
        """Of the rows at int64 `places` alone."""
        figures = {name: values_R[places] for name, values_R in self.figures.items()}
        return Coupling(self.slope_R[places], self.loss_R[places], figures)

    def terms(self, statistic_T: Tensor, row_T: Tensor) -> LossTerms:
        """The rows' share of the loss, from their tokens' statistic [T] with gradients: its value
        is that of the units, its gradient the sum of `slope` times that of each row's scalar.

        `sums`: `loss`, and `pairs/NAME` for each figure, which add up to means over the units.
        """
        linear = (self.slope_R.to(statistic_T.dtype)[row_T] * statistic_T).sum()
        value = self.loss_R.sum()
        loss = linear - linear.detach() + value.to(linear.dtype)
        sums = {f"pairs/{name}": values_R.sum() for name, values_R in self.figures.items()}
        return LossTerms(loss, {"loss": value, **sums}, {})


def couple(settings: AlgorithmSettings, units: Units, rows: Tensor, scalars: Scalars) -> Coupling:
    """The coupling of `units` among `rows` (int64[R], the numbers that units name rows by), whose
    scalars are given.

    Raises ValueError as the loss does. Every member of every unit must be among the rows.
    """
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
        )
        found = LOSSES[settings.loss].loss(settings, members)
        weighted_U = units.weight_U * found.loss_U
        (slope_R,) = torch.autograd.grad(weighted_U.sum(), scalar_R)
    first_U = _first(units.unit_M, len(units.weight_U))

    def at_first(values_U: Tensor) -> Tensor:
        zeros_R = torch.zeros_like(slope_R)
        return zeros_R.index_add(0, place_M[first_U], values_U.detach())

    figures = {name: at_first(units.weight_U * each_U) for name, each_U in found.figures.items()}
    return Coupling(slope_R, at_first(weighted_U), figures)


def _first(unit_M: Tensor, num_units: int) -> Tensor:
    """int64[U]: the first member of each unit."""
    member_M = torch.arange(len(unit_M))
    return torch.zeros(num_units, dtype=torch.int64).scatter_reduce(
        0, unit_M, member_M, "amin", include_self=False
    )
