"""Named algorithms with their published settings, and what must hold for any settings.

Loads no torch, so that a run file can be checked. Overriding fields is the run file's work
(`manta.orchestrator`); the numbers that a paper leaves open are named beside the preset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from manta.algorithms.settings import (
    COUPLED_LOSSES,
    AlgorithmSettings,
    CriticSettings,
    KlSettings,
    OffPolicySettings,
    RewardModelSettings,
)

PRESETS: Mapping[str, AlgorithmSettings] = MappingProxyType(
    {
        # DeepSeekMath, arXiv 2402.03300, section 4.2: 64 samples, KL coefficient 0.04, one update a
        # step. The paper does not give the clip (0.2 is PPO's) nor an epsilon.
        "grpo": AlgorithmSettings(
            name="grpo",
            samples_per_prompt=64,
            advantage="group_relative",
            divide_by_std=True,
            loss="clipped_surrogate",
            clip_low=0.2,
            clip_high=0.2,
            aggregation="sequence_mean",
            kl=KlSettings(coef=0.04, estimator="k3", placement="loss"),
        ),
        # Understanding R1-Zero-Like Training, arXiv 2503.20783: 8 samples, no KL, the constant is
        # the generation budget, 3000 new tokens in the paper: set it to yours.
        "dr_grpo": AlgorithmSettings(
            name="dr_grpo",
            samples_per_prompt=8,
            advantage="group_relative",
            divide_by_std=False,
            loss="clipped_surrogate",
            clip_low=0.2,
            clip_high=0.2,
            aggregation="sequence_sum_constant",
            constant_length=3000,
        ),
        # DAPO, arXiv 2503.14476, section 4.1: 16 samples, clip 0.2 / 0.28, no KL. Its overlong
        # penalty is a reward component.
        "dapo": AlgorithmSettings(
            name="dapo",
            samples_per_prompt=16,
            advantage="group_relative",
            divide_by_std=True,
            loss="clipped_surrogate",
            clip_low=0.2,
            clip_high=0.28,
            aggregation="token_mean",
            drop_zero_variance_groups=True,
        ),
        # IcePop, Ring-1T report, arXiv 2510.18855, training recipe: 8 samples, no KL, tokens masked
        # whose ratio of learner to engine leaves 0.5 to 5. The report does not give the clip (0.2
        # is PPO's).
        "icepop": AlgorithmSettings(
            name="icepop",
            samples_per_prompt=8,
            advantage="group_relative",
            divide_by_std=True,
            loss="clipped_surrogate",
            clip_low=0.2,
            clip_high=0.2,
            aggregation="sequence_mean",
            proximal="learner",
            off_policy=OffPolicySettings(correction="mask", level="token", low=0.5, high=5.0),
        ),
        # PPO, arXiv 1707.06347, with GAE, arXiv 1506.02438, as used on language models: Ziegler et
        # al., arXiv 1909.08593, and their code: clip 0.2, value clip 0.2 and coefficient 0.1, no
        # discount, lambda 0.95, whitened advantages, k1 to the reference in each token's reward
        # (and four epochs: set `epochs_per_step`). A model of its own for the values as in Stiennon
        # et al., arXiv 2009.01325; KL coefficient 0.02 of InstructGPT, arXiv 2203.02155.
        "ppo": AlgorithmSettings(
            name="ppo",
            samples_per_prompt=1,
            advantage="gae",
            divide_by_std=False,
            gamma=1.0,
            gae_lambda=0.95,
            critic=CriticSettings(model="own", clip=0.2, loss_coef=0.1),
            loss="clipped_surrogate",
            clip_low=0.2,
            clip_high=0.2,
            aggregation="token_mean",
            kl=KlSettings(coef=0.02, estimator="k1", placement="reward"),
            proximal="learner",
            whiten_advantages=True,
        ),
        # Williams, "Simple statistical gradient-following algorithms", 1992: the mean over rows of
        # reward times the row's summed log-prob gradient, no baseline. With one on-policy update a
        # step the ratio is 1 and the clip never acts.
        "reinforce": AlgorithmSettings(
            name="reinforce",
            samples_per_prompt=1,
            advantage="reward",
            divide_by_std=False,
            loss="clipped_surrogate",
            aggregation="sequence_sum_constant",
            constant_length=1,
        ),
        # Maximum likelihood of given answers, mean over tokens.
        "sft": AlgorithmSettings(
            name="sft",
            samples_from="given",
            samples_per_prompt=1,
            advantage="reward",
            divide_by_std=False,
            loss="cross_entropy",
            aggregation="token_mean",
        ),
        # Rafailov et al., arXiv 2305.18290, appendix B: beta 0.1 (64 pairs a step, learning rate
        # 1e-6 after a ramp of 150 steps, RMSprop: set them in the stage). Its pairs are two answers
        # of a prompt.
        "dpo": AlgorithmSettings(
            name="dpo",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="dpo",
            unit="pair",
            pairs="best_worst",
            beta=0.1,
        ),
        # InstructGPT's, Ouyang et al., arXiv 2203.02155, eq. 1 and section 3.5: all pairs of a
        # prompt's answers, and every prompt counts the same. With two answers a prompt it is that
        # of Stiennon et al., arXiv 2009.01325. The paper starts from the supervised model; learning
        # rate 9e-6 for 6B parameters, one epoch (appendix C.2).
        "reward_model": AlgorithmSettings(
            name="reward_model",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="bradley_terry",
            unit="group",
            pairs="all",
            reward_model=RewardModelSettings(),
        ),
    }
)


def check(settings: AlgorithmSettings) -> None:
    """Raises ValueError where the settings contradict each other or cannot be computed with."""
    problems = [
        *_sampling(settings),
        *_numbers(settings),
        *_kl(settings),
        *_off_policy(settings),
        *_values(settings),
        *_cross_entropy(settings),
        *_units(settings),
        *_reward_model(settings),
    ]
    if problems:
        raise ValueError(f"algorithm {settings.name!r}: " + "; ".join(problems))


def _sampling(settings: AlgorithmSettings) -> list[str]:
    problems = []
    if settings.samples_per_prompt < 1:
        problems.append(
            f"samples_per_prompt is {settings.samples_per_prompt}, it must be 1 or more"
        )
    elif settings.samples_per_prompt == 1 and settings.advantage == "group_relative":
        problems.append(
            "a group of one has no group-relative advantage: set samples_per_prompt to 2 or more, "
            "or advantage to reward"
        )
    elif settings.samples_per_prompt == 1 and settings.drop_zero_variance_groups:
        problems.append(
            "drop_zero_variance_groups would drop every group of one: set samples_per_prompt to 2 "
            "or more, or switch it off"
        )
    return problems


def _numbers(settings: AlgorithmSettings) -> list[str]:
    problems = []
    for name, value in (("clip_low", settings.clip_low), ("clip_high", settings.clip_high)):
        if not value > 0:
            problems.append(f"{name} is {value}, it must be above 0 (0.2 is usual)")
    if settings.divide_by_std and not (settings.std_epsilon > 0):
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
    return problems


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
        elif value != 1 and settings.advantage != "gae":
            problems.append(
                f"{name} is {value:g} but advantage is {settings.advantage}, which does not read "
                "it: remove it, or set advantage to gae"
            )
    return problems if settings.critic is None else [*problems, *_critic(settings.critic)]


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


def _optimizer(name: str, told: CriticSettings | RewardModelSettings) -> list[str]:
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


def _cross_entropy(settings: AlgorithmSettings) -> list[str]:
    if settings.loss != "cross_entropy":
        return []
    unused = _useless(
        settings, {"kl in the reward": settings.kl.coef != 0 and settings.kl.placement == "reward"}
    )
    problems = [
        f"cross_entropy uses neither rewards nor a ratio, so `{name}` has no effect: remove it"
        for name in unused
    ]
    if settings.kl.coef != 0 and settings.samples_from == "given":
        problems.append(
            "the KL estimators need tokens that the policy sampled, given answers are not: set "
            "kl.coef to 0"
        )
    return problems


def _units(settings: AlgorithmSettings) -> list[str]:
    """A loss that couples rows, what it couples, and what it has no use for."""
    if not settings.is_coupled:
        if settings.unit == "row":
            return []
        return [
            f"unit is {settings.unit} but the loss {settings.loss} looks at each row by itself: "
            f"set unit to row, or loss to {' or '.join(COUPLED_LOSSES)}"
        ]
    problems = []
    if settings.unit == "row":
        problems.append(
            f"the loss {settings.loss} compares samples of a prompt: set unit to pair (every pair "
            "counts the same) or group (every prompt does)"
        )
    if settings.samples_per_prompt == 1:
        problems.append(
            "samples_per_prompt is 1, and a pair takes two samples of a prompt: set it to 2 or more"
        )
    if not 0 < settings.beta < math.inf:
        problems.append(f"beta is {settings.beta:g}, it must be above 0 (0.1 is usual)")
    unused = _useless(
        settings, {"kl.coef": settings.kl.coef != 0, "entropy_coef": settings.entropy_coef != 0}
    )
    return problems + [
        f"the loss {settings.loss} has no use for `{name}`: remove it" for name in unused
    ]


def _useless(settings: AlgorithmSettings, more: Mapping[str, bool]) -> list[str]:
    """What is set of the settings that only advantages and ratios need, and of `more`."""
    is_set = {
        f"advantage: {settings.advantage}": settings.advantage != "reward",
        "whiten_advantages": settings.whiten_advantages,
        "drop_zero_variance_groups": settings.drop_zero_variance_groups,
        "proximal: learner": settings.proximal == "learner",
        "off_policy": settings.off_policy.correction != "none",
        **more,
    }
    return [name for name, value in is_set.items() if value]


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
