"""Losses of the rows' tokens by the ratio of current over proximal policy, and without one.

Pure functions of log-probs and advantages, registered in `LOSSES`. What a loss reads of the
settings stands in `manta.algorithms.catalogue`, how its tokens are averaged in
`manta.algorithms.aggregate`. Losses over several rows are `manta.algorithms.coupled_losses`'.

A loss gives every token a term. Where a ratio is a whole row's, each of its tokens has the row's
term, so that the mean over a row's tokens (`sequence_mean`) is that term; a row's tokens are always
all here, whatever the micro-batches.

Shapes: T trained tokens of R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from manta.algorithms.kl import estimate
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import per_row

LARGEST_LOG_RATIO = 80.0
"""Beyond 88.7 float32 knows no ratio, and where a bound stops one its gradient would be 0 times
infinity."""


class RatioTokens(NamedTuple):
    """What a loss sees, [T] each: `logprob_T` of the current policy (carries gradients),
    `proximal_T` of the ratio's denominator, `advantage_T`, and int64 ascending `row_T`.
    `vocabulary_T`, for a loss that needs it: by how much the mean over the vocabulary of the
    policy's log-probs has risen since the start of the step, where the token is predicted.
    Bool `selected_T`: the tokens that the step's covariances have chosen, where any were."""

    logprob_T: Tensor
    proximal_T: Tensor
    advantage_T: Tensor
    row_T: Tensor
    vocabulary_T: Tensor | None = None
    selected_T: Tensor | None = None


class Surrogate(NamedTuple):
    """[T] each: the loss (carries gradients), the ratio that it is made of, and by name what is
    reported of a token, such as where a bound took its gradient away (bool)."""

    loss_T: Tensor
    ratio_T: Tensor
    figures: Mapping[str, Tensor]


PolicyLoss: TypeAlias = Callable[[AlgorithmSettings, RatioTokens], Surrogate]


def clipped_surrogate(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)` with
    `ratio = exp(logprob - proximal)`: PPO (arXiv 1707.06347, eq. 7), with separate bounds as in
    DAPO (arXiv 2503.14476, eq. 10).

    With `dual_clip` c the loss of a token with A < 0 is at most `-c * A`, so that a huge ratio has
    no gradient either: dual-clip PPO (Ye et al., arXiv 1912.09729; the bound `delta` of
    INTELLECT-2, arXiv 2505.07291, is the same one).

    A token is clipped low where A < 0 and the ratio is below `1 - clip_low`, high where A > 0 and
    the ratio is above `1 + clip_high`. At ratio 1 the gradient is that of `-A * logprob`
    (REINFORCE).
    """
    ratio_T = _ratio(tokens.logprob_T - tokens.proximal_T)
    surrogate = _clipped(settings, ratio_T, tokens.advantage_T)
    if settings.dual_clip is None:
        return surrogate
    most_T = -settings.dual_clip * tokens.advantage_T
    is_bad_T = tokens.advantage_T < 0
    loss_T = torch.where(is_bad_T, torch.minimum(surrogate.loss_T, most_T), surrogate.loss_T)
    dual_T = is_bad_T & (ratio_T.detach() > settings.dual_clip)
    return Surrogate(loss_T, ratio_T, {**surrogate.figures, "clip_fraction_dual": dual_T})


def gspo(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`clipped_surrogate` of the row's ratio `s = (pi(y) / pi_old(y))^(1/|y|)`, the geometric mean
    of its tokens' ratios: GSPO, arXiv 2507.18071, eq. 5. All tokens of a row must have one
    advantage."""
    log_ratio_T = tokens.logprob_T - tokens.proximal_T
    ratio_T = _ratio(_row_mean(log_ratio_T, tokens.row_T))
    return _clipped(settings, ratio_T, tokens.advantage_T)


def gspo_token(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`gspo` with an advantage for each token: the ratio has the value of the row's, and the
    gradient of the token's own log-prob, `sg(s) * pi_t / sg(pi_t)`: GSPO-token, arXiv 2507.18071,
    section 4.3. Where a row's tokens have one advantage, and count the same, value and gradient
    are those of `gspo`."""
    own_T = tokens.logprob_T - tokens.logprob_T.detach()
    log_ratio_T = (tokens.logprob_T - tokens.proximal_T).detach()
    ratio_T = _ratio(_row_mean(log_ratio_T, tokens.row_T) + own_T)
    return _clipped(settings, ratio_T, tokens.advantage_T)


def cispo(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`-sg(clip(ratio, 1 - clip_low, 1 + clip_high)) * A * logprob`: CISPO (MiniMax-M1, arXiv
    2506.13585, section 3.1). A bound changes a token's weight, and never takes its gradient away.

    `clip_low` of 1 or more is no lower bound, as in the report. The clip fractions are of tokens
    whose weight a bound changed, whatever their advantage.
    """
    ratio_T = _ratio(tokens.logprob_T.detach() - tokens.proximal_T)
    low, high = 1.0 - settings.clip_low, 1.0 + settings.clip_high
    loss_T = -ratio_T.clamp(low, high) * tokens.advantage_T * tokens.logprob_T
    figures = {"clip_fraction_low": ratio_T < low, "clip_fraction_high": ratio_T > high}
    return Surrogate(loss_T, ratio_T, figures)


def gmpo(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`-A * (prod_t rho_t)^(1/|y|)`, the geometric mean over the row's tokens of
    `rho = min(ratio, exp(clip_high))` where A > 0, else `max(ratio, exp(-clip_low))`: GMPO, arXiv
    2507.20673, section 3, whose bounds are of the log-ratio (`exp(-0.4)` to `exp(0.4)`). All tokens
    of a row must have one advantage. The ratio that is reported is the bounded geometric mean."""
    log_ratio_T = tokens.logprob_T - tokens.proximal_T
    is_good_T = tokens.advantage_T > 0
    bounded_T = torch.where(
        is_good_T,
        log_ratio_T.clamp(max=settings.clip_high),
        log_ratio_T.clamp(min=-settings.clip_low),
    )
    ratio_T = _ratio(_row_mean(bounded_T, tokens.row_T))
    current_T = log_ratio_T.detach()
    figures = {
        "clip_fraction_low": (tokens.advantage_T < 0) & (current_T < -settings.clip_low),
        "clip_fraction_high": is_good_T & (current_T > settings.clip_high),
    }
    return Surrogate(-tokens.advantage_T * ratio_T, ratio_T, figures)


def sapo(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`-A * (4 / tau) * sigmoid(tau * (ratio - 1))`, tau being `tau_positive` where A > 0, else
    `tau_negative`: SAPO, arXiv 2511.20347. At ratio 1 the gradient is that of
    REINFORCE, and it falls off smoothly on both sides; `gate_mean` is by how much:
    `4 p (1 - p)` of the sigmoid p, 1 at ratio 1."""
    ratio_T = _ratio(tokens.logprob_T - tokens.proximal_T)
    tau_T = torch.full_like(tokens.advantage_T, settings.tau_negative)
    tau_T = tau_T.masked_fill(tokens.advantage_T > 0, settings.tau_positive)
    gate_T = torch.sigmoid(tau_T * (ratio_T - 1.0))
    slope_T = (4.0 * gate_T * (1.0 - gate_T)).detach()
    loss_T = -tokens.advantage_T * gate_T * 4.0 / tau_T
    return Surrogate(loss_T, ratio_T, {"gate_mean": slope_T})


def rover(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`(Q_t - sg(A + successor_weight * Q'_(t+1)))^2`, where `Q_t = rho * (logprob - proximal)` is
    a token's value and `Q'_(t+1)` the mean of such values over the vocabulary where the row's next
    trained token is predicted, 0 after its last: ROVER, He et al., arXiv 2509.24981, algorithm 1,
    whose values are those of the policy that draws every token alike. At ratio 1 the gradient is
    that of `-2 rho * A * logprob`. `successor_value` is the mean of Q'.

    Raises ValueError without statistics of the vocabulary.
    """
    if tokens.vocabulary_T is None:
        raise ValueError(
            "the loss rover reads the vocabulary's mean log-prob at the start of the step, which "
            "only the learner knows: set proximal to learner"
        )
    rise_T = tokens.logprob_T - tokens.proximal_T
    value_T = settings.rho * tokens.vocabulary_T.detach()
    next_T = torch.zeros_like(value_T)
    goes_on_T = tokens.row_T[1:] == tokens.row_T[:-1]
    next_T[:-1] = torch.where(goes_on_T, value_T[1:], 0.0)
    target_T = tokens.advantage_T + settings.successor_weight * next_T
    loss_T = (settings.rho * rise_T - target_T).square()
    return Surrogate(loss_T, _ratio(rise_T), {"successor_value": next_T})


def clip_cov(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`clipped_surrogate` without `dual_clip`, and 0 at the chosen tokens, which so have no
    gradient: Clip-Cov, arXiv 2505.22617, section 4.2 (how tokens are chosen:
    `manta.algorithms.token_choice`). `covariance_fraction` is the share of chosen ones."""
    ratio_T = _ratio(tokens.logprob_T - tokens.proximal_T)
    surrogate = _clipped(settings, ratio_T, tokens.advantage_T)
    selected_T = _chosen(tokens)
    loss_T = torch.where(selected_T, 0.0, surrogate.loss_T)
    figures = {**surrogate.figures, "covariance_fraction": selected_T}
    return Surrogate(loss_T, ratio_T, figures)


def kl_cov(settings: AlgorithmSettings, tokens: RatioTokens) -> Surrogate:
    """`-ratio * A`, plus `covariance.coef` times an estimate of KL(proximal || policy) at the
    chosen tokens: KL-Cov, arXiv 2505.22617, section 4.2. The ratio is not bounded. At ratio
    1 no estimate has a gradient: what holds tokens back is felt from a step's second update on.
    `covariance_fraction` is the share of chosen ones.

    The paper writes a KL, and its listing computes `|log ratio|` (`covariance.estimator:
    absolute`), which pulls a token back with one force however far it has gone. In a step's first
    update, where ratios differ from 1 by rounding alone, that force has the sign of the rounding
    error, so that what is learnt depends on micro-batches and ranks; k2 and k3 begin at 0."""
    log_ratio_T = tokens.logprob_T - tokens.proximal_T
    ratio_T = _ratio(log_ratio_T)
    selected_T = _chosen(tokens)
    moved_T = torch.where(selected_T, log_ratio_T.clamp(max=LARGEST_LOG_RATIO), 0.0)
    kl_T = moved_T.abs()
    if settings.covariance.estimator != "absolute":
        kl_T = estimate(settings.covariance.estimator, torch.zeros_like(moved_T), moved_T)
    loss_T = -ratio_T * tokens.advantage_T + settings.covariance.coef * kl_T
    return Surrogate(loss_T, ratio_T, {"covariance_fraction": selected_T})


LOSSES: Mapping[str, PolicyLoss] = {
    "clipped_surrogate": clipped_surrogate,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "cispo": cispo,
    "gmpo": gmpo,
    "sapo": sapo,
    "rover": rover,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}
"""Every loss that has a ratio."""


def policy_gradient(logprob_T: Tensor, advantage_T: Tensor) -> Tensor:
    """`-A * logprob`, [T]: REINFORCE (Williams 1992). Nothing bounds a step, and nothing is asked
    of whoever sampled the tokens: for one on-policy update a step, and for given tokens."""
    return -advantage_T * logprob_T


def cross_entropy(logprob_T: Tensor) -> Tensor:
    """`-logprob`, [T]: the negative log-likelihood of given tokens."""
    return -logprob_T


def _ratio(log_ratio_T: Tensor) -> Tensor:
    """`exp`, of `LARGEST_LOG_RATIO` at most, where it has no gradient any more."""
    return torch.exp(log_ratio_T.clamp(max=LARGEST_LOG_RATIO))


def _clipped(settings: AlgorithmSettings, ratio_T: Tensor, advantage_T: Tensor) -> Surrogate:
    """PPO's surrogate of any ratio."""
    low, high = 1.0 - settings.clip_low, 1.0 + settings.clip_high
    bounded_T = ratio_T.clamp(low, high)
    with torch.no_grad():
        figures = {
            "clip_fraction_low": (advantage_T < 0) & (ratio_T < low),
            "clip_fraction_high": (advantage_T > 0) & (ratio_T > high),
        }
    loss_T = -torch.minimum(ratio_T * advantage_T, bounded_T * advantage_T)
    return Surrogate(loss_T, ratio_T, figures)


def _chosen(tokens: RatioTokens) -> Tensor:
    if tokens.selected_T is None:
        raise ValueError(
            "the loss looks at the tokens that a step's covariances have chosen, and none were: "
            "give it what the token stage made (`selected_T`)"
        )
    return tokens.selected_T


def _row_mean(values_T: Tensor, row_T: Tensor) -> Tensor:
    """The mean over each token's row, [T]. Summed in float64: bounds may be as narrow as 3e-4."""
    num_rows = int(row_T[-1]) + 1 if len(row_T) else 0
    sums_R = per_row(values_T.double(), row_T, num_rows)
    counts_R = torch.bincount(row_T, minlength=num_rows)
    return (sums_R / counts_R.clamp(min=1))[row_T].to(values_T.dtype)
