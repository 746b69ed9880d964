"""What must hold for any settings of an algorithm, by itself.

Loads no torch, so that a run file can be checked. What each loss and advantage reads stands in
`manta.algorithms.catalogue`, what losses without a ratio need in
`manta.algorithms.unit_contradictions`; what the rest of a run file must say is
`manta.orchestrator`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from manta.algorithms.catalogue import ADVANTAGE_KINDS, LOSS_KINDS, OPTIONAL, readers
from manta.algorithms.choice_contradictions import choice_problems, target_problems
from manta.algorithms.companion_contradictions import companion_problems
from manta.algorithms.condition_contradictions import condition_problems
from manta.algorithms.difficulty_contradictions import difficulty_problems
from manta.algorithms.filter_contradictions import filter_problems
from manta.algorithms.part_settings import (
    CriticSettings,
    ImplicitRewardSettings,
    RewardModelSettings,
)
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.teacher_contradictions import teacher_problems
from manta.algorithms.unit_contradictions import imitation_problems, unit_problems

_DEFAULTS = AlgorithmSettings("")


def check(settings: AlgorithmSettings) -> None:
    """Raises ValueError where the settings contradict each other or cannot be computed with."""
    problems = [
        *_sampling(settings),
        *_unread(settings),
        *_numbers(settings),
        *_row_advantage(settings),
        *_kl(settings),
        *_off_policy(settings),
        *_vocabulary(settings),
        *_values(settings),
        *_no_advantage(settings),
        *difficulty_problems(settings),
        *imitation_problems(settings),
        *unit_problems(settings),
        *_reward_model(settings),
        *_implicit_reward(settings),
        *filter_problems(settings),
        *companion_problems(settings),
        *condition_problems(settings),
        *choice_problems(settings, PRESETS.get(settings.name, _DEFAULTS)),
        *target_problems(settings),
        *teacher_problems(settings),
    ]
    if problems:
        raise ValueError(f"algorithm {settings.name!r}: " + "; ".join(problems))


def _sampling(settings: AlgorithmSettings) -> list[str]:
    problems = []
    if settings.samples_per_prompt < 1:
        problems.append(
            f"samples_per_prompt is {settings.samples_per_prompt}, it must be 1 or more"
        )
    elif settings.samples_per_prompt == 1 and ADVANTAGE_KINDS[settings.advantage].needs_group:
        problems.append(
            f"a group of one has no {_spoken(settings.advantage)} advantage: set "
            "samples_per_prompt to 2 or more, or advantage to reward"
        )
    if settings.samples_from == "given":
        problems += _given(settings)
    return problems


def _given(settings: AlgorithmSettings) -> Iterator[str]:
    """Of losses that weigh rows by advantages, where nobody sampled the rows."""
    kind = LOSS_KINDS[settings.loss]
    if not kind.uses_advantages:
        return
    if ADVANTAGE_KINDS[settings.advantage].needs_group:
        yield (
            f"samples_from is given, one answer of each prompt, and a group of one has no "
            f"{_spoken(settings.advantage)} advantage: set samples_from to policy, or advantage to "
            "reward"
        )
    if kind.ratio is not None and settings.proximal == "behaviour":
        yield (
            f"samples_from is given, and the ratio of {settings.loss} is to whoever sampled: set "
            "samples_from to policy, loss to policy_gradient or cross_entropy, or proximal to "
            "learner"
        )


def _spoken(name: str) -> str:
    return name.replace("_", "-")


def _unread(settings: AlgorithmSettings) -> Iterator[str]:
    """Settings that the loss or the advantage does not read. What a preset brought along when
    another loss was laid over it was not asked for, and is let pass."""
    preset = PRESETS.get(settings.name, _DEFAULTS)
    for name in OPTIONAL:
        value = getattr(settings, name)
        if value in (getattr(_DEFAULTS, name), getattr(preset, name)):
            continue
        what, by = readers(name)
        chosen = getattr(settings, what)
        if chosen not in by:
            yield (
                f"{name} is {value} but {what} is {chosen}, which does not read it: remove it, or "
                f"set {what} to {' or '.join(by)}"
            )


def _row_advantage(settings: AlgorithmSettings) -> Iterator[str]:
    """A loss of whole rows, where every token has an advantage of its own."""
    if not LOSS_KINDS[settings.loss].needs_row_advantage:
        return
    charges_kl = settings.kl.coef != 0 and settings.kl.placement == "reward"
    by_token = ADVANTAGE_KINDS[settings.advantage].reads_within
    causes = {
        f"advantage {settings.advantage}": by_token,
        "KL in the reward": charges_kl,
        "an implicit_reward": settings.implicit_reward is not None,
    }
    for cause in [told for told, is_so in causes.items() if is_so]:
        yield (
            f"{cause} gives every token an advantage of its own, and the loss {settings.loss} is "
            "of whole rows: set loss to gspo_token, or change the advantage, kl.placement or "
            "implicit_reward"
        )


def _numbers(settings: AlgorithmSettings) -> list[str]:
    problems = []
    reads = ADVANTAGE_KINDS[settings.advantage].reads
    for name in ("clip_low", "clip_high", "tau_positive", "tau_negative", "rho"):
        value, usual = getattr(settings, name), getattr(_DEFAULTS, name)
        if not 0 < value < math.inf:
            problems.append(f"{name} is {value}, it must be above 0 ({usual:g} is usual)")
    if not 0 <= settings.successor_weight < math.inf:
        problems.append(
            f"successor_weight is {settings.successor_weight:g}, it must be 0 or more (1 is usual)"
        )
    if settings.dual_clip is not None and not 1 < settings.dual_clip < math.inf:
        problems.append(
            f"dual_clip is {settings.dual_clip:g}, it must be above 1 (3 is usual; null: no bound)"
        )
    for name in ("imitation_coef", "alignment_coef"):
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            problems.append(f"{name} is {value}, it must be 0 or more")
    for name, weight in settings.component_weights.items():
        if not math.isfinite(weight):
            problems.append(f"component_weights.{name} is {weight}, it must be a finite number")
    if not 0 <= settings.turn_weight <= 1:
        problems.append(
            f"turn_weight is {settings.turn_weight:g}, it must be at least 0 and at most 1"
        )
    if "pass_k" in reads and not 1 <= settings.pass_k <= max(1, settings.samples_per_prompt):
        problems.append(
            f"pass_k is {settings.pass_k}, it must be at least 1 and at most samples_per_prompt "
            f"({settings.samples_per_prompt})"
        )
    divides = "divide_by_std" not in reads or settings.divide_by_std
    if "std_epsilon" in reads and divides and not 0 < settings.std_epsilon < math.inf:
        problems.append(
            f"std_epsilon is {settings.std_epsilon}, it must be above 0: a group of equal rewards "
            "would divide by 0"
        )
    if settings.aggregation == "sequence_sum_constant" and settings.constant_length <= 0:
        problems.append(
            f"constant_length is {settings.constant_length}: sequence_sum_constant divides by it, "
            "set it to the largest number of new tokens"
        )
    if not math.isfinite(settings.entropy_coef):
        problems.append(f"entropy_coef is {settings.entropy_coef}, it must be a finite number")
    return problems


def _kl(settings: AlgorithmSettings) -> list[str]:
    penalty = settings.kl
    if not (math.isfinite(penalty.coef) and penalty.coef >= 0):
        return [f"kl.coef is {penalty.coef}, it must be 0 or more"]
    if not 0 <= penalty.discount <= 1:
        return [f"kl.discount is {penalty.discount:g}, it must be at least 0 and at most 1"]
    is_charged = penalty.coef != 0 and penalty.placement == "reward"
    # What a preset brought along is let pass, so that its KL can be switched off by one key
    brought = PRESETS.get(settings.name, _DEFAULTS).kl.discount
    if not is_charged and penalty.discount not in (1, brought):
        return [
            f"kl.discount is {penalty.discount:g}, and no KL is charged to the reward: remove it, "
            "or set kl.placement to reward and kl.coef above 0"
        ]
    if penalty.discount != 1 and settings.advantage == "gae":
        return [
            f"kl.discount is {penalty.discount:g} but advantage is gae, which discounts the KL as "
            "it does rewards: remove it, or set gamma"
        ]
    if penalty.coef == 0:
        return []
    if penalty.placement == "loss" and penalty.estimator == "k1":
        return [
            "the k1 estimator has no expected gradient as a loss: set kl.estimator to k2 or k3, or "
            "place the KL in the reward"
        ]
    if penalty.placement == "reward" and penalty.estimator != "k1":
        return [
            f"KL in the reward needs an estimator whose policy gradient is that of the KL: set "
            f"kl.estimator to k1 instead of {penalty.estimator}"
        ]
    return []


def _off_policy(settings: AlgorithmSettings) -> list[str]:
    """The ratio 1 of tokens that nothing is wrong with must stay inside the bounds."""
    told = settings.off_policy
    problems = []
    takes = {
        "off_policy.low": (told.low, told.correction == "mask", "mask"),
        "off_policy.high": (told.high, told.correction in ("truncate", "mask"), "truncate or mask"),
    }
    for name, (value, is_used, by) in takes.items():
        if value is not None and not is_used:
            problems.append(
                f"{name} is {value} but off_policy.correction is {told.correction}, which has no "
                f"use for it: remove it, or set the correction to {by}"
            )
    if told.correction == "truncate" and told.high is None:
        problems.append("off_policy.correction is truncate: set off_policy.high (2 is usual)")
    if told.correction == "mask" and told.low is None and told.high is None:
        problems.append(
            "off_policy.correction is mask: set off_policy.low, off_policy.high or both (0.5 and 5 "
            "in IcePop)"
        )
    if told.low is not None and not 0 < told.low <= 1:
        problems.append(f"off_policy.low is {told.low}, it must be above 0 and at most 1")
    if told.high is not None and not 1 <= told.high < math.inf:
        problems.append(f"off_policy.high is {told.high}, it must be a number of at least 1")
    if told.correction == "none" and told.level != "token":
        problems.append("off_policy.level has no effect without a correction: remove it")
    if told.correction != "none" and settings.proximal != "learner":
        problems.append(
            f"off_policy.correction is {told.correction} but proximal is {settings.proximal}: the "
            "clipped ratio to the engine's log-probs holds that weight already, set proximal to "
            "learner"
        )
    is_of_rows = LOSS_KINDS[settings.loss].needs_row_advantage
    if told.correction != "none" and told.level == "token" and is_of_rows:
        problems.append(
            f"off_policy.level is token, and the loss {settings.loss} is of whole rows: set it to "
            "sequence, or loss to gspo_token or clipped_surrogate"
        )
    return problems


def _vocabulary(settings: AlgorithmSettings) -> Iterator[str]:
    if LOSS_KINDS[settings.loss].needs_vocabulary and settings.proximal != "learner":
        yield (
            f"the loss {settings.loss} reads the vocabulary's mean log-prob at the start of the "
            "step, which engines do not tell: set proximal to learner"
        )


def _values(settings: AlgorithmSettings) -> list[str]:
    """GAE and a critic go together, and with settings that only they read."""
    problems = []
    if settings.advantage == "gae" and settings.critic is None:
        problems.append(
            "advantage is gae, which needs values: add a critic (`critic: {}`), or choose another "
            "advantage"
        )
    if settings.advantage != "gae" and settings.critic is not None:
        problems.append(
            f"there is a critic but advantage is {settings.advantage}, which has no use for its "
            "values: set advantage to gae, or critic to null"
        )
    for name, value in (("gamma", settings.gamma), ("gae_lambda", settings.gae_lambda)):
        if not 0 <= value <= 1:
            problems.append(f"{name} is {value:g}, it must be at least 0 and at most 1")
    return problems if settings.critic is None else [*problems, *_critic(settings.critic)]


def _no_advantage(settings: AlgorithmSettings) -> list[str]:
    """Without an advantage the KL is all there is."""
    if settings.advantage != "none" or not LOSS_KINDS[settings.loss].uses_advantages:
        return []
    problems = []
    if settings.kl.coef == 0:
        problems.append(
            "advantage is none and kl.coef is 0, so that there is nothing to learn from: set "
            "kl.coef (1 in on-policy distillation), or another advantage"
        )
    if settings.filters:
        problems.append(
            "advantage is none, so that no rewards are read, and filters would leave groups out "
            "for theirs: remove them"
        )
    return problems


def _critic(critic: CriticSettings) -> list[str]:
    problems = []
    if critic.path is not None and critic.model == "shared":
        problems.append(
            "critic.path is set but critic.model is shared, a head on the policy's own trunk: "
            "remove it, or set critic.model to own"
        )
    if critic.clip is not None and not 0 < critic.clip < math.inf:
        problems.append(f"critic.clip is {critic.clip:g}, it must be above 0 (null: no bound)")
    if not 0 < critic.loss_coef < math.inf:
        problems.append(f"critic.loss_coef is {critic.loss_coef:g}, it must be above 0")
    if critic.warmup_steps < 0:
        problems.append(f"critic.warmup_steps is {critic.warmup_steps}, it must be 0 or more")
    return [*problems, *_optimizer("critic", critic)]


def _optimizer(
    name: str, told: CriticSettings | RewardModelSettings | ImplicitRewardSettings
) -> list[str]:
    """Of what stands beside the policy."""
    problems = []
    if told.learning_rate is not None and not 0 < told.learning_rate < math.inf:
        problems.append(f"{name}.learning_rate is {told.learning_rate:g}, it must be above 0")
    for key, value in (("weight_decay", told.weight_decay), ("clip_norm", told.clip_norm)):
        if value is not None and not 0 <= value < math.inf:
            problems.append(f"{name}.{key} is {value:g}, it must be 0 or more")
    if told.betas is not None and not all(0 <= beta < 1 for beta in told.betas):
        problems.append(f"{name}.betas must each be at least 0 and below 1")
    return problems


def _reward_model(settings: AlgorithmSettings) -> list[str]:
    told, trains = settings.reward_model, settings.loss == "bradley_terry"
    if told is None:
        missing = "the loss bradley_terry trains a reward model: add one (`reward_model: {}`)"
        return [missing] if trains else []
    problems = _optimizer("reward_model", told)
    if not trains:
        problems.append(
            f"there is a reward model but the loss {settings.loss} does not train it: set loss to "
            "bradley_terry, or reward_model to null"
        )
    return problems


def _implicit_reward(settings: AlgorithmSettings) -> list[str]:
    """Its rewards come on top of an advantage that compares samples as it does."""
    told = settings.implicit_reward
    if told is None:
        return []
    problems = _optimizer("implicit_reward", told)
    if not LOSS_KINDS[settings.loss].uses_advantages:
        problems.append(
            f"implicit_reward rewards tokens, and the loss {settings.loss} has no use for "
            "advantages: set loss to clipped_surrogate, or implicit_reward to null"
        )
    elif settings.advantage != "leave_one_out":
        problems.append(
            f"implicit_reward compares its rewards with those of a prompt's other samples, and "
            f"advantage is {settings.advantage}: set advantage to leave_one_out, or "
            "implicit_reward to null"
        )
    for name in ("beta", "coef"):
        value = getattr(told, name)
        if not 0 < value < math.inf:
            problems.append(f"implicit_reward.{name} is {value:g}, it must be above 0")
    if not math.isfinite(told.outcome_above):
        problems.append(
            f"implicit_reward.outcome_above is {told.outcome_above}, it must be a finite number"
        )
    return problems
