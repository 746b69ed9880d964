"""Losses that couple rows, as functions of one number per row.

Each is registered in `LOSSES` with the token statistic whose sum over a row is that number. They
see units and their members alone: neither tokens, nor ranks, nor micro-batches. How a loss becomes
the gradient of a model is `manta.algorithms.coupled`'s; who is compared with whom is
`manta.algorithms.pairs`'.

Shapes: U units of M members in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from manta.algorithms.part_settings import MarginWeightSettings
from manta.algorithms.settings import AlgorithmSettings


@dataclass(frozen=True, slots=True)
class Members:
    """What a coupled loss sees: float64[M] `scalar_M` (carries gradients), `reference_M`, the same
    of the policy that it is compared with (None without one), `num_tokens_M`, `label_M`; int64[M]
    `unit_M`; float64[U] `margin_U`; bool[M] `is_companion_M` (None: no member is a row beside the
    samples)."""

    scalar_M: Tensor
    reference_M: Tensor | None
    num_tokens_M: Tensor
    label_M: Tensor
    unit_M: Tensor
    margin_U: Tensor
    is_companion_M: Tensor | None = None

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

    `chosen` and `rejected` are the implicit rewards `beta (log pi - log ref)`. With
    `length_normalized` a log-ratio is divided by its answer's tokens (as in Tulu 3, arXiv
    2411.15124). With `margin_weight` a pair's loss is multiplied by its weight, which is reported
    (`margin_weight`). Raises ValueError without a reference.
    """
    implicit_M = settings.beta * _log_ratio(settings, members)
    terms = _preference(implicit_M, members, torch.zeros_like(members.margin_U))
    if settings.margin_weight is None:
        return terms
    weight_U = margin_weight(settings.margin_weight, members.margin_U)
    return UnitTerms(weight_U * terms.loss_U, {**terms.figures, "weight": weight_U})


def xpo(settings: AlgorithmSettings, members: Members) -> UnitTerms:
    """The loss of `dpo` over a sample of the policy and one of the reference, plus
    `exploration_coef * log pi(y_ref)`, y_ref being the latter, whichever of them is preferred:
    XPO, Xie et al., arXiv 2405.21046. What the reference says anyway becomes less likely.

    The paper's algorithm could not be read here. Sign, sum over an answer's tokens and mean over
    pairs are those of TRL's `XPOTrainer` (0.22; 1.16 has none), which takes a draw for a win of the
    policy's sample; here it is no pair. `companion_logprob`: log pi(y_ref). Raises ValueError
    without a reference, or where a pair has not one companion.
    """
    beside_M = members.is_companion_M
    if beside_M is None or not bool((members.total(beside_M.double()) == 1).all()):
        raise ValueError(
            "the loss xpo compares a sample with one of the reference, and a pair has not one of "
            "each: set pairs to companion"
        )
    implicit_M = settings.beta * (members.scalar_M - _reference(settings, members))
    terms = _preference(implicit_M, members, torch.zeros_like(members.margin_U))
    logprob_U = members.total(beside_M * members.scalar_M)
    loss_U = terms.loss_U + settings.exploration_coef * logprob_U
    return UnitTerms(loss_U, {**terms.figures, "companion_logprob": logprob_U})


def margin_weight(told: MarginWeightSettings, margin_U: Tensor) -> Tensor:
    """`sigmoid(c m) / sigmoid(m)` of a pair whose rewards differ by m, [U]: MADPO, Rho, arXiv
    2510.05342, with `c = low + (high - low) / (1 + (high - 1) / (1 - low) * exp(steepness * (|m| -
    threshold)))`, which is 1 at `threshold`. Where m is -`threshold` or less the weight is 1.

    A pair that is harder to tell apart than that weighs more than 1, an easier one less.
    """
    excess_U = torch.exp(told.steepness * (margin_U.abs() - told.threshold))
    spread = (told.high - 1) / (1 - told.low)
    factor_U = told.low + (told.high - told.low) / (1 + spread * excess_U)
    weight_U = torch.sigmoid(factor_U * margin_U) / torch.sigmoid(margin_U)
    return torch.where(margin_U > -told.threshold, weight_U, 1.0)


def ipo(settings: AlgorithmSettings, members: Members) -> UnitTerms:
    """`(h - 1 / (2 beta))^2`, h being the difference of the log-ratios of preferred and other one:
    Azar et al., arXiv 2310.12036, eq. 17, whose tau is `beta`. Figures as of `dpo`.

    With `length_normalized` each log-ratio is the mean over its answer's tokens, so that the target
    means the same whatever the lengths are. Raises ValueError without a reference.
    """
    log_ratio_M = _log_ratio(settings, members)
    chosen_U, rejected_U = _sides(log_ratio_M, members)
    loss_U = (chosen_U - rejected_U - 1 / (2 * settings.beta)).square()
    return UnitTerms(loss_U, _figures(settings.beta * chosen_U, settings.beta * rejected_U))


def simpo(settings: AlgorithmSettings, members: Members) -> UnitTerms:
    """`-log sigmoid(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - target_margin)`: SimPO,
    Meng et al., arXiv 2405.14734. There is no reference: the reward is the mean log-prob."""
    reward_M = settings.beta * members.scalar_M / members.num_tokens_M.clamp(min=1)
    margin_U = torch.full_like(members.margin_U, settings.target_margin)
    return _preference(reward_M, members, margin_U)


def bradley_terry(settings: AlgorithmSettings, members: Members) -> UnitTerms:
    """`-log sigmoid(r_w - r_l - margin)`: Ouyang et al., arXiv 2203.02155, eq. 1, and Stiennon et
    al., arXiv 2009.01325, section 3.4; with a margin Llama 2, arXiv 2307.09288, eq. 2. A scalar is
    the reward model's score."""
    return _preference(members.scalar_M, members, members.margin_U)


def kto(settings: AlgorithmSettings, members: Members) -> UnitTerms:
    """`w (1 - sigmoid(beta (h - z)))` of a desirable row, `w (1 - sigmoid(beta (z - h)))` of
    another: Ethayarajh et al., arXiv 2402.01306, eq. 7. h is the row's log-ratio to the
    reference, z the reference point, w `desirable_weight` or `undesirable_weight`. Each unit is a
    row; all of an update's must be here, since z is made of them.

    z carries no gradient and is never below 0. `reference_point: samples` estimates
    KL(pi || reference) by the mean log-ratio of all rows, which have to be samples of pi.
    `other_class`: for a desirable row the mean log-ratio of the others, and the other way round,
    as in the method's first report; 0 where a class is empty. `zero`: 0, the unpaired form of APO
    (arXiv 2408.06266).

    `accuracy`: rows on the right side of the reference point; `chosen` and `rejected`: the mean
    implicit rewards `beta h` of desirable rows and of others. Raises ValueError without a
    reference.
    """
    log_ratio_M = members.scalar_M - _reference(settings, members)
    good_M = members.label_M
    point_M = _reference_point(settings.reference_point, log_ratio_M.detach(), good_M)
    sign_M = 2 * good_M - 1
    value_M = torch.sigmoid(settings.beta * sign_M * (log_ratio_M - point_M))
    weight_M = settings.desirable_weight * good_M + settings.undesirable_weight * (1 - good_M)
    implicit_M = settings.beta * log_ratio_M
    figures = {
        "accuracy": ((log_ratio_M - point_M) * sign_M > 0).double(),
        "reference_point": point_M,
        "desirable": good_M,
        "chosen": implicit_M * _as_mean(good_M),
        "rejected": implicit_M * _as_mean(1 - good_M),
    }
    return UnitTerms(
        members.total(weight_M * (1 - value_M)),
        {name: members.total(values_M) for name, values_M in figures.items()},
    )


def pacs(settings: AlgorithmSettings, members: Members) -> UnitTerms:
    """Mean over a prompt's samples of the cross-entropy of `sigmoid(psi)` with the label:
    `-R log sigmoid(psi) - (1 - R) log sigmoid(-psi)`, with `psi_i = r_i - mean_(j != i) r_j` and
    `r = beta (log pi(y) - log pi_old(y))`: PACS, Li et al., arXiv 2509.02522. `pi_old` is the
    policy at the start of the step. A sample without others has psi 0, and no gradient.

    With `balance_classes` a sample of n weighs `n / (2 n_c)`, n_c being how many have its label,
    unless all have it: the weighting by question of the authors' code.

    `accuracy`: samples whose psi has the sign of their label; `margin`: the mean of psi where the
    label is 1, else of -psi. Raises ValueError without log-probs of the start of the step.
    """
    if members.reference_M is None:
        raise ValueError(
            "the loss pacs needs log-probs of the sampling policy, and these rows have none (given "
            "answers?): sample from the policy"
        )
    size_M = members.total(torch.ones_like(members.scalar_M))[members.unit_M]
    proxy_M = settings.beta * (members.scalar_M - members.reference_M)
    centred_M = proxy_M - members.total(proxy_M)[members.unit_M] / size_M
    score_M = centred_M * size_M / (size_M - 1).clamp(min=1)
    ahead_M = (2 * members.label_M - 1) * score_M
    weight_M = torch.ones_like(size_M)
    if settings.balance_classes:
        good_M = members.total(members.label_M)[members.unit_M]
        same_M = torch.where(members.label_M > 0, good_M, size_M - good_M)
        weight_M = torch.where(same_M == size_M, 1.0, size_M / (2 * same_M))
    figures = {
        "accuracy": (ahead_M > 0).double(),
        "desirable": members.label_M,
        "margin": ahead_M,
    }
    return UnitTerms(
        members.total(-weight_M * logsigmoid(ahead_M) / size_M),
        {name: members.total(values_M / size_M) for name, values_M in figures.items()},
    )


def _reference_point(how: str, log_ratio_M: Tensor, good_M: Tensor) -> Tensor:
    """z of each row, [M]."""
    if how == "zero":
        return torch.zeros_like(log_ratio_M)
    if how == "samples":
        return log_ratio_M.mean().clamp(min=0).expand(len(log_ratio_M))
    of_good, of_others = (
        (log_ratio_M * _as_mean(share_M)).mean().clamp(min=0) for share_M in (good_M, 1 - good_M)
    )
    return good_M * of_others + (1 - good_M) * of_good


def _as_mean(of_M: Tensor) -> Tensor:
    """Factors under which a mean over all rows is one over those of `of_M`, which are 1; 0 if there
    are none."""
    return of_M / of_M.mean().clamp(min=1e-300)


def _reference(settings: AlgorithmSettings, members: Members) -> Tensor:
    if members.reference_M is None:
        raise ValueError(
            f"{settings.loss} compares the policy with a reference, and these rows have no "
            "reference log-probs: run reference workers"
        )
    return members.reference_M


def _log_ratio(settings: AlgorithmSettings, members: Members) -> Tensor:
    log_ratio_M = members.scalar_M - _reference(settings, members)
    if settings.length_normalized:
        return log_ratio_M / members.num_tokens_M.clamp(min=1)
    return log_ratio_M


def _preference(reward_M: Tensor, members: Members, margin_U: Tensor) -> UnitTerms:
    """The negative log-likelihood of pairs, a preferred member and another one each."""
    chosen_U, rejected_U = _sides(reward_M, members)
    loss_U = -logsigmoid(chosen_U - rejected_U - margin_U)
    return UnitTerms(loss_U, _figures(chosen_U, rejected_U))


def _sides(values_M: Tensor, members: Members) -> tuple[Tensor, Tensor]:
    """[U] of the preferred members and of the other ones."""
    chosen_U = members.total(members.label_M * values_M)
    return chosen_U, members.total((1 - members.label_M) * values_M)


def _figures(chosen_U: Tensor, rejected_U: Tensor) -> dict[str, Tensor]:
    ahead_U = chosen_U - rejected_U
    return {
        "accuracy": (ahead_U > 0).double(),
        "margin": ahead_U,
        "chosen": chosen_U,
        "rejected": rejected_U,
    }


class Coupled(NamedTuple):
    """A loss, and the token statistic whose sum over a row it takes as the row's scalar. `reports`:
    what its figures are of. `needs_update`: it has to see all units of an update at once, and not
    each by itself."""

    loss: CoupledLoss
    scalar: Literal["logprob", "score"]
    reports: Literal["pairs", "labels"] = "pairs"
    needs_update: bool = False


LOSSES: Mapping[str, Coupled] = {
    "dpo": Coupled(dpo, "logprob"),
    "xpo": Coupled(xpo, "logprob"),
    "ipo": Coupled(ipo, "logprob"),
    "simpo": Coupled(simpo, "logprob"),
    "kto": Coupled(kto, "logprob", "labels", needs_update=True),
    "pacs": Coupled(pacs, "logprob", "labels"),
    "bradley_terry": Coupled(bradley_terry, "score"),
}
