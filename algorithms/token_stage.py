"""The token stage: what advantages owe to token tensors, on the learner's ranks.

Runs once a step, before its first update, over all rows of a rank. Batch moments are summed over
ranks by a function that the caller passes in; nothing here knows how ranks talk.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from manta.algorithms import kl
from manta.algorithms.advantages import gae, return_to_go
from manta.algorithms.aggregate import row_weight
from manta.algorithms.catalogue import ADVANTAGE_KINDS
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.token_choice import choose
from manta.algorithms.tokens import TokenBatch
from manta.algorithms.turns import Places, turn_mixed, turn_returns, turns_of

WHITEN_EPSILON = 1e-8
"""Added to the variance, so that equal advantages become 0."""


def token_stage(
    settings: AlgorithmSettings,
    batch: TokenBatch,
    all_reduce: AllReduce,
    tickets_T: Tensor | None = None,
    places: Places | None = None,
) -> TokenBatch:
    """`batch` with `advantage_T` made from the rows' `advantage` coefficient, in this order:

    1. KL in the reward (`kl.placement` is `reward`): `A_t = A - coef * sum_(s >= t) d^(s - t) KL_s`
       over the rest of the row, d being `kl.discount`. With 1 this is the return-to-go of per-token
       rewards that charge every token its KL and pay the row's advantage on the last trained token:
       InstructGPT (arXiv 2203.02155) for the rewards, REINFORCE++ (arXiv 2501.03262, eq. 8 and 9)
       for the sum. With 0 a token is charged its own KL: on-policy distillation (Lu et al. 2025,
       thinkingmachines.ai/blog/on-policy-distillation), the reference being the teacher. With
       group-relative advantages the KL is charged after the baseline and is not part of it. KL is
       the estimate between the log-probs at the start of the step (`proximal_T` if there is one,
       else `behaviour_T`) and `reference_T`.
       With `advantage: gae` the coefficient is the row's reward, and `advantage_T` are the
       generalised advantage estimates of these per-token rewards over `value_T`; `return_T` are
       those plus the values. Tokens between trained ones (other parties' turns) take no time.
       Rewards within the rows (`reward_T`) are among these rewards.
       With `return_to_go` and `turn_mixed` the coefficient is the row's reward too, paid on its
       last trained token beside the rewards within, and the A of above is what is made of both: the
       discounted sum of what is paid from the token on, or from its turn on, without a baseline;
       or `manta.algorithms.turns.turn_mixed`.
       With an implicit reward model the rewards within are its own, less their baseline, and what
       is paid from a token on comes on top (PRIME, arXiv 2502.01456, eq. 5).
    2. Whitening over the step's tokens, on all ranks, by row weight (`whiten_advantages`).
    3. The choice of tokens by the covariance of these advantages with the log-probs that a KL in
       the reward would take, on all ranks (`manta.algorithms.token_choice`), into `selected_T`;
       `tickets_T` are that module's.

    With none of them every token gets its row's advantage. `all_reduce` is called where advantages
    are whitened, turns compared or tokens chosen, by every rank equally often, else not at all.
    Idempotent: an earlier result in `advantage_T` is not read. `places` is for `turn_mixed`.

    Raises ValueError where the KL or the choice needs log-probs, GAE values, or an advantage of
    turns their numbers or `places`, that are not there.
    """
    advantage_R = batch.coefficients_R["advantage"]
    advantage_T, return_T = advantage_R[batch.row_T], None
    kl_T = _charged(settings, batch)
    if settings.advantage == "gae":
        advantage_T, return_T = _from_values(settings, batch, kl_T)
    elif ADVANTAGE_KINDS[settings.advantage].reads_within:
        advantage_T = _from_returns(settings, batch, all_reduce, places).to(advantage_T.dtype)
    if settings.advantage != "gae" and kl_T is not None:
        charged_T = return_to_go(kl_T, batch.row_T, settings.kl.discount)
        advantage_T = advantage_T - settings.kl.coef * charged_T
    if settings.implicit_reward is not None and batch.reward_T is not None:
        advantage_T = advantage_T + return_to_go(batch.reward_T, batch.row_T, settings.gamma)
    if settings.whiten_advantages:
        weight_T = row_weight(batch.coefficients_R)[batch.row_T]
        advantage_T = whiten(advantage_T, weight_T, all_reduce)
    staged = replace(batch, advantage_T=advantage_T, return_T=return_T)
    if settings.chooses_tokens:
        staged = replace(staged, selected_T=_selected(settings, staged, all_reduce, tickets_T))
    return staged


def _from_values(
    settings: AlgorithmSettings, batch: TokenBatch, kl_T: Tensor | None
) -> tuple[Tensor, Tensor]:
    """GAE's advantages [T], and the returns that the critic learns."""
    value_T, row_T = batch.value_T, batch.row_T
    if value_T is None:
        raise ValueError(
            "advantage is gae but the batch has no values: train with a critic, or choose another "
            "advantage"
        )
    charges_T = torch.zeros_like(value_T) if kl_T is None else kl_T
    reward_R = batch.coefficients_R["advantage"]
    rewards_T = token_rewards(reward_R, charges_T, row_T, settings.kl.coef)
    if batch.reward_T is not None:
        rewards_T = rewards_T + batch.reward_T
    advantage_T = gae(rewards_T, value_T, row_T, settings.gamma, settings.gae_lambda)
    return advantage_T, advantage_T + value_T


def _from_returns(
    settings: AlgorithmSettings, batch: TokenBatch, all_reduce: AllReduce, places: Places | None
) -> Tensor:
    """float64[T]: the advantages of tokens by what is paid in their rows, without values."""
    reward_R = batch.coefficients_R["advantage"].double()
    rewards_T = token_rewards(reward_R, torch.zeros_like(batch.row_T), batch.row_T, 0.0)
    if batch.reward_T is not None:
        rewards_T = rewards_T + batch.reward_T
    if not settings.reads_turns:
        return return_to_go(rewards_T, batch.row_T, settings.gamma)
    if batch.turn_T is None:
        raise ValueError(
            f"advantage {settings.advantage} is by turn, and tokens' turns are unknown"
        )
    turns = turns_of(batch.row_T, batch.turn_T)
    if settings.advantage == "return_to_go":
        return turn_returns(rewards_T, turns, settings.gamma)[turns.of_T]
    if places is None:
        raise ValueError("advantage turn_mixed compares rows, and where they stand is unknown")
    mixed_U = turn_mixed(
        rewards_T,
        turns,
        places,
        settings.gamma,
        settings.turn_weight,
        settings.mixed_over,
        settings.std_epsilon,
        all_reduce,
    )
    return mixed_U[turns.of_T]


def _charged(settings: AlgorithmSettings, batch: TokenBatch) -> Tensor | None:
    """The KL estimate [T] that the reward is charged with; None where it is not."""
    if settings.kl.placement != "reward" or settings.kl.coef == 0.0:
        return None
    old_T = batch.start_T
    if old_T is None or batch.reference_T is None:
        raise ValueError(
            "KL in the reward needs log-probs of the sampling policy and of the reference for "
            "every token: let the policy sample and run reference workers, or set kl.coef to 0"
        )
    return kl.estimate(settings.kl.estimator, old_T, batch.reference_T)


def _selected(
    settings: AlgorithmSettings,
    batch: TokenBatch,
    all_reduce: AllReduce,
    tickets_T: Tensor | None,
) -> Tensor:
    old_T = batch.start_T
    if old_T is None or tickets_T is None:
        raise ValueError(
            f"the loss {settings.loss} chooses tokens by the log-probs of the sampling policy, and "
            "these rows have none, or no tickets: let the policy sample"
        )
    counts_T = batch.mean_T != 0
    return choose(settings, old_T, batch.advantage_T, counts_T, tickets_T, all_reduce)


def token_rewards(reward_R: Tensor, kl_T: Tensor, row_T: Tensor, coef: float) -> Tensor:
    """Per-token rewards [T]: `-coef * KL_t`, plus the row's reward on its last trained token.

    InstructGPT (arXiv 2203.02155), PPO with a KL penalty per token. A row without trained tokens
    has nowhere to put its reward, and drops out.
    """
    is_last_T = torch.ones_like(row_T, dtype=torch.bool)
    is_last_T[:-1] = row_T[1:] != row_T[:-1]
    return torch.where(is_last_T, reward_R[row_T], 0.0) - coef * kl_T


def whiten(values_T: Tensor, weight_T: Tensor, all_reduce: AllReduce) -> Tensor:
    """`(v - mean) / sqrt(variance + 1e-8)` with weighted moments over all ranks, [T].

    Sum, sum of squares and count travel in one float64[3]; the variance is that of the population
    (divisor: the sum of weights). Tokens of weight 0 do not enter the moments. Batch-wide
    normalisation as in REINFORCE++ (arXiv 2501.03262, eq. 10). A rank without tokens still takes
    part in the sum.
    """
    values, weight = values_T.double(), weight_T.double()
    # A value that does not count may be anything, also infinite.
    values = torch.where(weight != 0, values, 0.0)
    moments = all_reduce(
        torch.stack([(weight * values).sum(), (weight * values.square()).sum(), weight.sum()])
    )
    mean, mean_square = moments[:2] / moments[2].clamp(min=1e-300)
    variance = (mean_square - mean.square()).clamp(min=0.0)
    whitened: Tensor = (values - mean) * torch.rsqrt(variance + WHITEN_EPSILON)
    return whitened.to(values_T.dtype)
