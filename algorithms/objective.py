"""The objective: from a token batch and the policy's statistics to the terms of a micro-batch.

Puts losses, KL, entropy and aggregation weights together as the settings say, and says which
statistics of the policy it wants. Evaluating the policy and stepping are the backend's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from manta.algorithms import kl
from manta.algorithms.catalogue import LOSS_KINDS
from manta.algorithms.losses import LOSSES, RatioTokens, cross_entropy, policy_gradient
from manta.algorithms.off_policy import correct
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.step_tally import StepTally
from manta.algorithms.teacher_kl import figures, teacher_kl
from manta.algorithms.tokens import LossTerms, TokenBatch, vocabulary_mean
from manta.algorithms.values import value_loss

Want: TypeAlias = Literal["logprob", "entropy", "logsumexp", "vocab_mean", "likeliest", "value"]


class _Policy(NamedTuple):
    """The policy's term [T] and what it reports: means [T] still to be averaged, of them those of
    sampled tokens alone in `drift`, and maxima."""

    loss_T: Tensor
    means: dict[str, Tensor]
    maxima: dict[str, Tensor]
    drift: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of `settings`. `report_entropy` asks for the entropy where the loss has no use for
    it (it costs a pass over the vocabulary)."""

    settings: AlgorithmSettings
    report_entropy: bool = False

    @property
    def wants(self) -> tuple[Want, ...]:
        """The statistics that `loss` reads, float[T] each (`likeliest`: [T, k + 1])."""
        has_entropy = self.settings.entropy_coef != 0.0 or self.report_entropy
        policy: tuple[Want, ...] = ("logprob", "entropy") if has_entropy else ("logprob",)
        if LOSS_KINDS[self.settings.loss].needs_vocabulary:
            policy = (*policy, "logsumexp", "vocab_mean")
        if LOSS_KINDS[self.settings.loss].needs_likeliest:
            policy = (*policy, "likeliest")
        return policy if self.settings.critic is None else (*policy, "value")

    @property
    def needs_reference(self) -> bool:
        return self.settings.needs_reference

    def loss(
        self, batch: TokenBatch, stats: Mapping[str, Tensor], tally: StepTally | None = None
    ) -> LossTerms:
        """`sum(weight_T * (policy_T + kl.coef * kl_T - entropy_coef * entropy_T))`, the KL only
        where it is placed in the loss (GRPO, arXiv 2402.03300, eq. 3).

        `stats` holds the current policy's values of `wants` for the batch's tokens, with gradients.
        A token of weight 0 contributes nothing, whatever its log-probs are, infinite ones too.
        The policy term carries the weight of the off-policy correction (`manta.algorithms.
        off_policy`); KL and entropy do not, as in IcePop's objective (arXiv 2510.18855).

        `sums`: `loss` and `policy_loss` under the loss's own weights; under `mean_T` (so they are
        means over the update's trained tokens) `kl_reference` (the settings' estimator, where the
        batch has reference log-probs, and of sampled tokens alone: of others it is no estimate)
        with `kl_reference_k1` and `kl_reference_k3`, `entropy` (if wanted), and for losses with a
        ratio `ratio_mean` (a masked token counts as 1, in its row's ratio too), the loss's own
        figures (`clip_fraction_low`, `clip_fraction_high` and the like: `manta.algorithms.losses`),
        `kl_behaviour` and `kl_behaviour_k1`, the k3 and k1 estimates of KL(behaviour || policy),
        and with a correction its `weight_mean`. `maxima`: `ratio_max`.
        `policy_gradient` and `teacher_kl` report of these what needs no ratio, the latter also what
        `manta.algorithms.teacher_kl` does. Where given tokens stand among sampled ones,
        `entropy`, `kl_behaviour` and `kl_reference` are means over the sampled ones (`sampled_T`).
        With a critic its terms come on top (`critic_loss`). `tally` counts the ratios, and the
        importance weights of losses that weigh tokens by advantages.

        Raises ValueError where the batch lacks log-probs that the settings need.
        """
        active_T = _active(batch)
        logprob_T = _only(active_T, stats["logprob"])
        policy = self._policy(batch, stats, logprob_T, active_T, tally)
        loss_T, means, drift = policy.loss_T, policy.means, policy.drift
        if batch.reference_T is not None:
            reference_T = _only(active_T, batch.reference_T)
            kl_T = kl.estimate(self.settings.kl.estimator, logprob_T, reference_T)
            if self.settings.kl.placement == "loss" and self.settings.kl.coef != 0.0:
                loss_T = loss_T + self.settings.kl.coef * kl_T
            drift |= _sampled_alone(
                batch, {"kl_reference": kl_T, **_from_reference(logprob_T, reference_T)}
            )
        elif self.settings.needs_reference:
            raise ValueError(
                f"kl.coef is {self.settings.kl.coef} but the batch has no reference log-probs: run "
                "reference workers, or set kl.coef to 0"
            )
        if "entropy" in self.wants:
            drift["entropy"] = _only(active_T, stats["entropy"])
            if self.settings.entropy_coef != 0.0:
                loss_T = loss_T - self.settings.entropy_coef * drift["entropy"]
        loss = (batch.weight_T * loss_T).sum()
        sums = _sums(batch, means, drift)
        sums["policy_loss"] = (batch.weight_T * policy.loss_T.detach()).sum()
        if self.settings.critic is not None:
            critic = self.critic_loss(batch, stats)
            loss = loss + critic.loss
            sums |= critic.sums
        sums["loss"] = loss.detach()
        return LossTerms(loss, sums, policy.maxima)

    def seen(self, batch: TokenBatch, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `loss` reports of the policy itself, as sums, for a loss that is not made here
        (`manta.algorithms.coupled`): `kl_behaviour` and `kl_behaviour_k1`, `kl_reference_k1` and
        `kl_reference_k3`, `entropy`, as far as batch and statistics have them."""
        active_T = _active(batch)
        current_T = _only(active_T, stats["logprob"].detach())
        drift = _drift(batch, current_T, active_T)
        if batch.reference_T is not None:
            reference_T = _only(active_T, batch.reference_T)
            drift |= _sampled_alone(batch, _from_reference(current_T, reference_T))
        if "entropy" in stats:
            drift["entropy"] = _only(active_T, stats["entropy"])
        return _sums(batch, {}, drift)

    def critic_loss(self, batch: TokenBatch, stats: Mapping[str, Tensor]) -> LossTerms:
        """`critic.loss_coef * sum(mean_T * value_T)`, the part of `loss` that is the critic's: the
        mean over the update's trained tokens, whatever the policy's loss is aggregated by.

        `stats` holds the current `value`. `sums`: `loss`, and under `mean_T` `critic/value_loss`
        and `critic/clip_fraction`. Raises ValueError where the batch lacks values and returns.
        """
        told = self.settings.critic
        if told is None or batch.value_T is None or batch.return_T is None:
            raise ValueError(
                "the value loss needs a critic, its values at the start of the step and returns: "
                "set algorithm.critic and advantage: gae"
            )
        active_T = batch.mean_T != 0
        found = value_loss(
            _only(active_T, stats["value"]),
            _only(active_T, batch.value_T),
            _only(active_T, batch.return_T),
            told.clip,
        )
        mean = (batch.mean_T * found.loss_T).sum()
        loss = told.loss_coef * mean
        clipped = (batch.mean_T * found.clipped_T.to(batch.mean_T.dtype)).sum()
        sums = {
            "loss": loss.detach(),
            "critic/value_loss": mean.detach(),
            "critic/clip_fraction": clipped,
        }
        return LossTerms(loss, sums, {})

    def _policy(
        self,
        batch: TokenBatch,
        stats: Mapping[str, Tensor],
        logprob_T: Tensor,
        active_T: Tensor,
        tally: StepTally | None,
    ) -> _Policy:
        if LOSS_KINDS[self.settings.loss].is_plain:
            return self._plain(batch, logprob_T, active_T, tally)
        if LOSS_KINDS[self.settings.loss].needs_likeliest:
            return self._taught(batch, logprob_T, stats["likeliest"], active_T)
        if self.settings.loss not in LOSSES:
            drift = _drift(batch, logprob_T.detach(), active_T)
            return _Policy(cross_entropy(logprob_T), {}, {}, drift)
        current_T = logprob_T.detach()
        proximal_T = batch.start_T
        if proximal_T is None:
            raise ValueError(
                f"the loss {self.settings.loss} needs log-probs of the sampling policy, and these "
                "rows have none (given answers?): use the cross_entropy loss, or sample from the "
                "policy"
            )
        proximal_T = _only(active_T, proximal_T)
        weight_T = self._off_policy_weight(batch, active_T)
        # Multiplying by a weight of 0 would keep the NaN of an infinite ratio.
        logprob_T = torch.where(weight_T != 0, logprob_T, proximal_T)
        advantage_T = _only(active_T, batch.advantage_T)
        vocabulary_T = _moved(batch, stats, active_T)
        tokens = RatioTokens(
            logprob_T, proximal_T, advantage_T, batch.row_T, vocabulary_T, batch.selected_T
        )
        surrogate = LOSSES[self.settings.loss](self.settings, tokens)
        ratio_T = surrogate.ratio_T.detach()
        figures = {name: figure.to(ratio_T.dtype) for name, figure in surrogate.figures.items()}
        means = {**figures, "ratio_mean": ratio_T}
        if self.settings.off_policy.correction != "none":
            means["weight_mean"] = weight_T
        maxima = {"ratio_max": _greatest(_only(active_T, ratio_T))}
        drift = _drift(batch, current_T, active_T, tally, ratio_T)
        return _Policy(weight_T * surrogate.loss_T, means, maxima, drift)

    def _plain(
        self, batch: TokenBatch, logprob_T: Tensor, active_T: Tensor, tally: StepTally | None
    ) -> _Policy:
        """Of a loss that needs to know nothing of who sampled."""
        current_T = logprob_T.detach()
        means: dict[str, Tensor] = {}
        advantage_T = _only(active_T, batch.advantage_T)
        if self.settings.off_policy.correction != "none":
            weight_T = self._off_policy_weight(batch, active_T)
            means["weight_mean"] = weight_T
            logprob_T = torch.where(weight_T != 0, logprob_T, 0.0)
            advantage_T = weight_T * advantage_T
        drift = _drift(batch, current_T, active_T, tally)
        return _Policy(policy_gradient(logprob_T, advantage_T), means, {}, drift)

    def _taught(
        self,
        batch: TokenBatch,
        logprob_T: Tensor,
        likeliest_TK: Tensor,
        active_T: Tensor,
    ) -> _Policy:
        """Of a loss over what the reference, the teacher, finds likely."""
        teacher_TK, weight_T = batch.teacher_TK, batch.teacher_weight_T
        if teacher_TK is None or weight_T is None:
            raise ValueError(
                f"the loss {self.settings.loss} needs the tokens that the reference finds likely, "
                "and the batch has none: have the reference workers tell"
            )
        # Equal distributions where a token does not count: no loss and no gradient
        policy_TK = torch.where(active_T[:, None], likeliest_TK, teacher_TK)
        loss_T = teacher_kl(self.settings.teacher.interpolation, teacher_TK, policy_TK)
        drift = _drift(batch, logprob_T.detach(), active_T)
        return _Policy(weight_T * loss_T, figures(teacher_TK, policy_TK), {}, drift)

    def _off_policy_weight(self, batch: TokenBatch, active_T: Tensor) -> Tensor:
        """The weight [T] of each token's policy loss, without gradients."""
        if self.settings.off_policy.correction == "none":
            return torch.ones_like(batch.advantage_T)
        if batch.behaviour_T is None or batch.proximal_T is None:
            raise ValueError(
                f"off_policy.correction is {self.settings.off_policy.correction} but the batch has "
                "not both the engine's and the learner's log-probs: let the policy sample, and set "
                "proximal to learner"
            )
        proximal_T = _only(active_T, batch.proximal_T)
        behaviour_T = _only(active_T, batch.behaviour_T)
        return correct(self.settings.off_policy, proximal_T, behaviour_T, batch.row_T).weight_T


def _moved(batch: TokenBatch, stats: Mapping[str, Tensor], active_T: Tensor) -> Tensor | None:
    """How far the mean over the vocabulary has moved since the step began, where it is known."""
    now_T = vocabulary_mean(stats)
    if now_T is None or batch.vocabulary_T is None:
        return None
    return _only(active_T, now_T - batch.vocabulary_T)


def _active(batch: TokenBatch) -> Tensor:
    """bool[T]: the tokens that count at all."""
    return (batch.weight_T != 0) | (batch.mean_T != 0)


def _sums(
    batch: TokenBatch, means: Mapping[str, Tensor], drift: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """This batch's share of means over the update's tokens, of `drift` over the sampled ones."""
    of_sampled_T = batch.mean_T if batch.sampled_T is None else batch.sampled_T
    sums = {name: (batch.mean_T * mean_T.detach()).sum() for name, mean_T in means.items()}
    return sums | {name: (of_sampled_T * mean_T.detach()).sum() for name, mean_T in drift.items()}


def _from_reference(logprob_T: Tensor, reference_T: Tensor) -> dict[str, Tensor]:
    current_T = logprob_T.detach()
    return {
        "kl_reference_k1": kl.k1(current_T, reference_T),
        "kl_reference_k3": kl.k3(current_T, reference_T),
    }


def _sampled_alone(batch: TokenBatch, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`figures` at tokens that somebody sampled, 0 at others; none where nobody did."""
    if batch.behaviour_T is None:
        return {}
    is_sampled_T = ~batch.behaviour_T.isnan()
    return {name: _only(is_sampled_T, values_T.detach()) for name, values_T in figures.items()}


def _drift(
    batch: TokenBatch,
    current_T: Tensor,
    active_T: Tensor,
    tally: StepTally | None = None,
    ratio_T: Tensor | None = None,
) -> dict[str, Tensor]:
    """How far the current policy is from the one that sampled, which is the p of KL(p || q);
    `tally` counts it, with the ratio that the loss has, if any."""
    if tally is not None:
        tally.add_ratios(ratio_T, current_T, batch.behaviour_T, batch.mean_T != 0)
    if batch.behaviour_T is None:
        return {}
    at_T = active_T & ~batch.behaviour_T.isnan()
    behaviour_T, current_T = _only(at_T, batch.behaviour_T), _only(at_T, current_T)
    return {
        "kl_behaviour": kl.k3(behaviour_T, current_T),
        "kl_behaviour_k1": kl.k1(behaviour_T, current_T),
    }


def _only(active_T: Tensor, values_T: Tensor) -> Tensor:
    """`values_T` with 0 at tokens that do not count. Multiplying by a weight of 0 would keep the
    NaN of an infinite log-prob, in the gradient too."""
    return torch.where(active_T, values_T, 0.0)


def _greatest(values_T: Tensor) -> Tensor:
    """The largest of values that are at least 0; 0 of none."""
    return values_T.amax() if len(values_T) else values_T.new_zeros(())
