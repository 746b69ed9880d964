"""Contradictory settings are refused with what to do; sound ones pass."""

import dataclasses

import pytest

from manta.algorithms.catalogue import ADVANTAGE_KINDS, FILTER_READS, LOSS_KINDS, OPTIONAL
from manta.algorithms.contradictions import check
from manta.algorithms.part_settings import (
    CriticSettings,
    DifficultySettings,
    FilterName,
    FilterSettings,
    ImplicitRewardSettings,
    KlSettings,
    MarginWeightSettings,
    OffPolicySettings,
    RewardModelSettings,
)
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings

ZERO = FilterSettings("zero_variance")
BAND = FilterSettings("accuracy_band")
FOUR = FilterSettings("max_variance", keep=4)


def changed(name: str, **changes: object) -> AlgorithmSettings:
    return dataclasses.replace(PRESETS[name], **changes)


def critic(**told: object) -> AlgorithmSettings:
    return changed("ppo", critic=CriticSettings(**told))  # type: ignore[arg-type]


def implicit(**told: object) -> AlgorithmSettings:
    return changed("prime", implicit_reward=ImplicitRewardSettings(**told))  # type: ignore[arg-type]


def weighed(**told: float) -> AlgorithmSettings:
    return changed("grpo_lead", difficulty=DifficultySettings(**told))


def by_margin(**told: float) -> AlgorithmSettings:
    return changed("madpo", margin_weight=MarginWeightSettings(**told))


def filtered(name: FilterName, **told: object) -> AlgorithmSettings:
    return changed("dr_grpo", filters=(FilterSettings(name, **told),))  # type: ignore[arg-type]


def off_policy(correction: str, **told: object) -> AlgorithmSettings:
    settings = OffPolicySettings(correction, **told)  # type: ignore[arg-type]
    return changed("grpo", proximal="learner", off_policy=settings)


def covariance(name: str, **told: object) -> AlgorithmSettings:
    settings = dataclasses.replace(PRESETS[name].covariance, **told)  # type: ignore[arg-type]
    return changed(name, covariance=settings)


def kl(name: str, **told: object) -> AlgorithmSettings:
    return changed(name, kl=dataclasses.replace(PRESETS[name].kl, **told))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (changed("grpo", samples_per_prompt=1), "group of one has no group-relative advantage"),
        (changed("grpo", samples_per_prompt=0), "samples_per_prompt is 0"),
        (changed("ppo", critic=None), "advantage is gae, which needs values: add a critic"),
        (
            changed("grpo", critic=CriticSettings()),
            "there is a critic but advantage is group_relative, which has no use for its values",
        ),
        (changed("reinforce", gamma=0.9), "gamma is 0.9 but advantage is reward"),
        (changed("reinforce", gae_lambda=0.9), "gae_lambda is 0.9 but advantage is reward"),
        (changed("ppo", gamma=1.1), "gamma is 1.1, it must be at least 0 and at most 1"),
        (changed("ppo", gae_lambda=-1), "gae_lambda is -1, it must be"),
        (changed("ppo", loss="cross_entropy"), "`advantage: gae` has no effect"),
        (critic(model="shared", path="x"), "critic.path is set but critic.model is shared"),
        (critic(clip=0.0), "critic.clip is 0, it must be above 0"),
        (critic(loss_coef=0.0), "critic.loss_coef is 0, it must be above 0"),
        (critic(warmup_steps=-1), "critic.warmup_steps is -1"),
        (critic(learning_rate=0.0), "critic.learning_rate is 0"),
        (critic(weight_decay=-1.0), "critic.weight_decay is -1"),
        (critic(clip_norm=-1.0), "critic.clip_norm is -1"),
        (critic(betas=(0.9, 1.0)), "critic.betas must each be"),
        (
            changed("prime", advantage="group_relative"),
            "implicit_reward compares its rewards with those of a prompt's other samples, and "
            "advantage is group_relative: set advantage to leave_one_out",
        ),
        (
            changed("dpo", implicit_reward=ImplicitRewardSettings()),
            "implicit_reward rewards tokens, and the loss dpo has no use for advantages",
        ),
        (
            changed("prime", loss="gspo"),
            "an implicit_reward gives every token an advantage of its own, and the loss gspo",
        ),
        (implicit(beta=0.0), "implicit_reward.beta is 0, it must be above 0"),
        (implicit(coef=-1.0), "implicit_reward.coef is -1, it must be above 0"),
        (implicit(outcome_above=float("nan")), "implicit_reward.outcome_above is nan"),
        (implicit(learning_rate=0.0), "implicit_reward.learning_rate is 0"),
        (implicit(betas=(0.9, 1.0)), "implicit_reward.betas must each be"),
        (changed("reinforce", filters=(ZERO,)), "would drop every group of one"),
        (changed("dr_grpo", constant_length=0), "constant_length is 0"),
        (changed("grpo", clip_low=0.0), "clip_low is 0.0"),
        (changed("grpo", clip_high=-0.1), "clip_high is -0.1"),
        (changed("grpo", clip_high=float("nan")), "clip_high is nan"),
        (changed("grpo", std_epsilon=0.0), "std_epsilon is 0.0"),
        (changed("grpo", entropy_coef=float("inf")), "entropy_coef is inf"),
        (changed("grpo", kl=KlSettings(coef=-0.1)), "kl.coef is -0.1"),
        (changed("grpo", kl=KlSettings(coef=0.1, estimator="k1")), "no expected gradient"),
        (
            changed("grpo", kl=KlSettings(coef=0.1, placement="reward")),
            "set kl.estimator to k1 instead of k3",
        ),
        (
            changed("sft", kl=KlSettings(coef=0.1, estimator="k1", placement="reward")),
            "`kl in the reward` has no effect",
        ),
        (changed("sft", kl=KlSettings(coef=0.1)), "given answers are not"),
        (changed("rloo", samples_per_prompt=1), "group of one has no leave-one-out advantage"),
        (
            changed("dapo", loss="sapo", clip_low=0.1),
            "clip_low is 0.1 but loss is sapo, .* remove it, or set loss to clipped_surrogate or",
        ),
        (changed("gspo", dual_clip=3.0), "dual_clip is 3.0 but loss is gspo"),
        (changed("grpo", dual_clip=1.0), "dual_clip is 1, it must be above 1"),
        (changed("grpo", tau_negative=2.0), "tau_negative is 2.0 but loss is .* set loss to sapo"),
        (changed("sapo", tau_positive=0.0), "tau_positive is 0.0, it must be above 0"),
        (changed("opo", std_epsilon=0.1), "std_epsilon is 0.1 but advantage is length_weighted"),
        (changed("grpo", pass_k=4), "pass_k is 4 but advantage is .* set advantage to pass_at_k"),
        (changed("pass_at_k", pass_k=9), r"pass_k is 9, .* at most samples_per_prompt \(8\)"),
        (
            changed("gdpo", component_weights={"x": float("nan")}),
            "component_weights.x is nan, it must be a finite number",
        ),
        (
            changed("gspo", kl=KlSettings(0.1, "k1", "reward")),
            "KL in the reward gives every token .* set loss to gspo_token",
        ),
        (changed("ppo", loss="gmpo"), "advantage gae gives every token"),
        (changed("mapo", loss="gspo"), "advantage turn_mixed gives every token"),
        (changed("mapo", turn_weight=1.5), "turn_weight is 1.5, it must be at least 0"),
        (changed("mapo", samples_per_prompt=1), "group of one has no turn-mixed advantage"),
        (changed("grpo", credit="turn"), "credit is turn but advantage is group_relative, which"),
        (changed("ppo", mixed_over="step"), "mixed_over is step but advantage is gae, which"),
        (covariance("kl_cov", low=2.0), "covariance.low is 2.0 but loss is kl_cov, .* to clip_cov"),
        (covariance("clip_cov", coef=2.0), "covariance.coef is 2.0 but loss is clip_cov"),
        (covariance("clip_cov", estimator="k2"), "covariance.estimator is k2 but .* to kl_cov"),
        (covariance("grpo", share=0.1), "set loss to clip_cov or kl_cov"),
        (covariance("kl_cov", share=0.0), "covariance.share is 0, it must be above 0"),
        (covariance("clip_cov", share=1.5), "covariance.share is 1.5, .* at most 1"),
        (covariance("clip_cov", low=5.0), "covariance.low is 5 and covariance.high 5, between"),
        (covariance("clip_cov", high=float("nan")), "between which no covariance lies"),
        (covariance("kl_cov", coef=0.0), "covariance.coef is 0, it must be above 0"),
        (kl("grpo", gain=0.2), "kl.gain is 0.2 but there is no kl.target"),
        (kl("grpo", target=0.0), "kl.target is 0, it must be above 0"),
        (kl("grpo", target=6.0, gain=5.0), "kl.gain is 5, it must be above 0 and below 5"),
        (kl("grpo", target=6.0, coef=0.0), "kl.coef, from which the coefficient begins, is 0"),
        (kl("sft", target=6.0), "it samples nothing here"),
        (kl("distillation", target=6.0), "no meaning where the KL alone trains"),
        (changed("sft", whiten_advantages=True), "`whiten_advantages` has no effect"),
        (off_policy("truncate"), "set off_policy.high"),
        (off_policy("mask"), "set off_policy.low, off_policy.high or both"),
        (off_policy("weight", high=2.0), "off_policy.high is 2.0 but .*correction is weight"),
        (off_policy("truncate", low=0.5, high=2.0), "off_policy.low is 0.5 but .* is truncate"),
        (off_policy("mask", low=1.5), "off_policy.low is 1.5, it must be above 0 and at most 1"),
        (off_policy("mask", low=0.0), "off_policy.low is 0.0, it must be above 0"),
        (off_policy("mask", high=0.5), "off_policy.high is 0.5, it must be a number of at least 1"),
        (off_policy("truncate", high=float("nan")), "off_policy.high is nan"),
        (off_policy("none", level="sequence"), "off_policy.level has no effect without"),
        (
            changed("grpo", off_policy=OffPolicySettings("weight")),
            "off_policy.correction is weight but proximal is behaviour",
        ),
        (changed("sft", off_policy=OffPolicySettings("weight")), "`off_policy` has no effect"),
        (changed("sft", proximal="learner"), "`proximal: learner` has no effect"),
        (changed("grpo", unit="pair"), "unit is pair but the loss clipped_surrogate looks at each"),
        (changed("dpo", unit="row"), "compares samples of a prompt: set unit to pair"),
        (changed("dpo", samples_per_prompt=1), "a pair takes two samples of a prompt"),
        (changed("dpo", beta=0.0), "beta is 0, it must be above 0"),
        (changed("dpo", advantage="group_relative"), "no use for `advantage: group_relative`"),
        (changed("dpo", kl=KlSettings(coef=0.1)), "the loss dpo has no use for `kl.coef`"),
        (changed("dpo", filters=(ZERO,)), "no use for `filters`"),
        (changed("dpo", entropy_coef=0.1), "no use for `entropy_coef`"),
        (changed("simpo", samples_per_prompt=1), "a pair takes two samples of a prompt"),
        (changed("simpo", kl=KlSettings(coef=0.1)), "the loss simpo has no use for `kl.coef`"),
        (changed("simpo", target_margin=-1.0), "target_margin is -1, it must be 0 or more"),
        (changed("simpo", length_normalized=True), "length_normalized is True but loss is simpo"),
        (changed("dpo", target_margin=1.0), "target_margin is 1.0 but loss is dpo, .* to simpo"),
        (changed("dpo", pair_margin=-0.5), "pair_margin is -0.5, it must be 0 or more"),
        (changed("kto", pair_margin=0.5), "pair_margin is 0.5 but loss is kto"),
        (changed("grpo", pair_margin=0.5), "pair_margin is 0.5 but loss is clipped_surrogate"),
        (
            changed("kto", unit="pair"),
            "loss kto learns from each row by its label: set unit to row",
        ),
        (
            changed("kto", reference_point="samples"),
            "given answers are not: set reference_point to",
        ),
        (changed("kto", desirable_above=float("nan")), "desirable_above is nan"),
        (changed("kto", undesirable_weight=-1.0), "undesirable_weight is -1, it must be 0 or more"),
        (changed("kto", desirable_weight=0, undesirable_weight=0), "so that nothing trains"),
        (changed("dpo", desirable_weight=2.0), "desirable_weight is 2.0 but loss is dpo"),
        (changed("pacs", unit="row"), "compares all samples of a prompt: set unit to group"),
        (changed("pacs", samples_per_prompt=1), "compares the samples of a prompt: set it to 2"),
        (changed("pacs", samples_from="given"), "given answers have none: set samples_from"),
        (changed("pacs", desirable_above=float("nan")), "desirable_above is nan"),
        (changed("pacs", beta=0.0), "beta is 0, it must be above 0"),
        (changed("pacs", off_policy=OffPolicySettings("weight")), "no use for `off_policy`"),
        (
            changed("rover", proximal="behaviour"),
            "which engines do not tell: set proximal to learner",
        ),
        (changed("grpo_lambda", penalized_share=0.0), "penalized_share is 0, it must be above 0"),
        (changed("grpo_lambda", length_penalty=1.5), "length_penalty is 1.5, it must be above 0"),
        (changed("grpo_lambda", filters=(ZERO,)), "zero_variance leaves these out: remove the"),
        (changed("grpo", length_penalty=0.1), "length_penalty is 0.1 but advantage is group_rel"),
        (weighed(low=2.0), "weighs from 2 to 1.5: let low be 0 or more"),
        (weighed(midpoint=75.0), "difficulty.midpoint is 75, a share"),
        (weighed(steepness=0.0), "difficulty.steepness is 0, it must be above 0"),
        (changed("grpo", difficulty=DifficultySettings(high=2.0)), "but advantage is group_relat"),
        (by_margin(low=1.0), "margin_weight goes from 2 down to 1: let low be above 0"),
        (by_margin(threshold=-1.0), "margin_weight.threshold is -1, it must be 0 or more"),
        (by_margin(steepness=0.0), "margin_weight.steepness is 0, it must be above 0"),
        (changed("ipo", margin_weight=MarginWeightSettings()), "but loss is ipo, .* loss to dpo"),
        (changed("rover", rho=0.0), "rho is 0.0, it must be above 0"),
        (changed("rover", successor_weight=-1.0), "successor_weight is -1, it must be 0 or more"),
        (changed("grpo", rho=2.0), "rho is 2.0 but loss is clipped_surrogate"),
        (changed("kto", balance_classes=True), "balance_classes is True but loss is kto"),
        (changed("sft", keep_best=1), "keep_best is 1 of 1 samples, which chooses nothing"),
        (changed("raft", keep_best=-1), "keep_best is -1, it must be 0"),
        (changed("raft", keep_best=8), "keep_best is 8 of 8 samples"),
        (changed("raft", keep_above=float("nan")), "keep_above is nan"),
        (changed("raft", reward_temperature=0.0), "reward_temperature is 0, it must be above 0"),
        (changed("grpo", keep_best=4), "keep_best is 4 but loss is .* set loss to cross_entropy"),
        (changed("raft", advantage="win_rate"), "`advantage: win_rate` has no effect"),
        (changed("spo", samples_per_prompt=1), "group of one has no win-rate advantage"),
        (changed("distillation", kl=KlSettings()), "advantage is none and kl.coef is 0, so that"),
        (changed("distillation", filters=(ZERO,)), "so that no rewards are read"),
        (changed("distillation", loss="gspo"), "KL in the reward gives every token an advantage"),
        (changed("grpo", kl=KlSettings(0.1, discount=0.5)), "no KL is charged to the reward"),
        (
            changed("rloo", kl=KlSettings(0.1, "k1", "reward", discount=1.5)),
            "kl.discount is 1.5, it must be at least 0 and at most 1",
        ),
        (
            changed("ppo", kl=KlSettings(0.1, "k1", "reward", discount=0.5)),
            "advantage is gae, which discounts the KL as it does rewards",
        ),
        (changed("reward_model", reward_model=None), "trains a reward model: add one"),
        (changed("dpo", reward_model=RewardModelSettings()), "the loss dpo does not train it"),
        (
            changed("reward_model", reward_model=RewardModelSettings(learning_rate=0.0)),
            "reward_model.learning_rate is 0, it must be above 0",
        ),
        (
            changed("sft", advantage="group_relative", samples_per_prompt=4),
            "`advantage: group_relative` has no effect",
        ),
        (
            changed("sft", samples_per_prompt=4, filters=(ZERO,)),
            "`filters` has no effect",
        ),
        (changed("grpo", filters=(ZERO, BAND, ZERO)), "filters has zero_variance 2 times"),
        (filtered("zero_variance", keep=4), "zero_variance has keep 4, which it does not read"),
        (filtered("max_variance", keep=4, low=0.1), "max_variance has low 0.1, which it does not"),
        (filtered("accuracy_band", low=0.9), "accuracy_band keeps shares from 0.9 to 0.8"),
        (filtered("accuracy_band", high=80), "keeps shares from 0.2 to 80: let low and high be"),
        (filtered("accuracy_band", low=float("nan")), "keeps shares from nan to 0.8"),
        (filtered("max_variance"), r"keeps 0 of samples_per_prompt \(8\): set keep to 2 or more"),
        (filtered("process_consistency", keep=8), "process_consistency keeps 8 of samples_per"),
        (filtered("max_variance", keep=4, process="x"), "max_variance has process x, which it"),
        (filtered("max_variance", keep=8), "keeps 8 of samples_per_prompt"),
        (changed("dr_grpo", filters=(FOUR, BAND)), "accuracy_band stands after max_variance"),
        (changed("pass_at_k", filters=(FOUR,)), "advantage pass_at_k goes by how many of a"),
        (changed("grpo_lead", filters=(FOUR,)), "difficulty_weighted goes by how many of a"),
        (changed("grpo_lambda", filters=(FOUR,)), "length_penalized goes by how many of a"),
        (changed("gdpo", filters=(ZERO,)), "zero_variance looks at the whole reward"),
        (filtered("accuracy_band", low=0.41, high=0.45), "of 8 samples no number is such a share"),
        (changed("dr_grpo", advantage="decoupled", std_epsilon=0.0), "std_epsilon is 0.0"),
        (changed("dr_grpo", advantage="difficulty_weighted", std_epsilon=0.0), "std_epsilon is"),
        *(
            (
                changed(
                    name,
                    proximal="learner",
                    off_policy=OffPolicySettings(correction="mask", low=0.5, high=5.0),
                ),
                f"off_policy.level is token, and the loss {name} is of whole rows: set it to",
            )
            for name in ("gspo", "gmpo")
        ),
    ],
)
def test_contradictions_are_refused(settings: AlgorithmSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check(settings)
    assert f"algorithm {settings.name!r}" in str(error.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"samples_per_prompt is 0.*; clip_low is 0"):
        check(changed("grpo", samples_per_prompt=0, clip_low=0.0))


@pytest.mark.parametrize(
    "settings",
    [
        changed("grpo", kl=KlSettings(coef=0.1, estimator="k2")),
        changed("grpo", kl=KlSettings(coef=0.1, estimator="k1", placement="reward")),
        changed("dr_grpo", std_epsilon=0.0),
        changed("grpo", constant_length=0),
        changed("reinforce", samples_per_prompt=8),
        changed("sft", samples_from="policy", samples_per_prompt=4),
        changed("sft", entropy_coef=-0.01),
        changed("dpo", samples_from="policy", samples_per_prompt=8, pairs="all", unit="group"),
        changed("reward_model", unit="pair", samples_per_prompt=9),
        changed("online_dpo", samples_per_prompt=8, pairs="all", pair_margin=0.2, unit="group"),
        changed("dpo", length_normalized=True),
        changed("kto", samples_from="policy", reference_point="samples", samples_per_prompt=1),
        changed("grpo_lambda", penalized_share=1.0, length_penalty=0.05, filters=(BAND,)),
        changed("dapo", advantage="difficulty_weighted"),
        changed("madpo", samples_from="policy", pairs="all", samples_per_prompt=8),
        changed("rover", successor_weight=0.0, divide_by_std=True, kl=KlSettings(0.01)),
        changed("pacs", proximal="behaviour", balance_classes=False),
        changed("kto", reference_point="zero", desirable_weight=0.0),
        changed("raft", keep_best=2, keep_above=0.5, reward_temperature=0.5),
        changed("raft", kl=KlSettings(coef=0.1)),
        changed("spo", divide_by_std=True),
        changed("spo", loss="gspo", kl=KlSettings(coef=0.01)),
        changed("distillation", samples_per_prompt=1),
        changed("distillation", kl=KlSettings(1.0, "k2", "loss")),
        changed("distillation", advantage="group_relative"),
        changed("grpo", kl=KlSettings(0.1, "k1", "reward", discount=0.9)),
        changed("dapo", loss="sapo"),
        changed("grpo", advantage="leave_one_out"),
        changed("ppo", loss="gspo_token"),
        changed("grpo", dual_clip=3.0),
        changed("pass_at_k", advantage="group_relative", samples_per_prompt=2),
        changed("gdpo", component_weights={"correct": 1.0, "format": 0.5}),
        changed("dr_grpo", filters=(BAND, FOUR, ZERO)),
        filtered("process_consistency", keep=4, component="exact", process="steps"),
        filtered("accuracy_band", component="exact", low=0.0, high=1.0),
        off_policy("weight", level="sequence"),
        off_policy("truncate", high=1.0),
        off_policy("mask", high=3.0),
    ],
)
def test_sound_overrides_pass(settings: AlgorithmSettings) -> None:
    check(settings)
    assert settings.name in PRESETS


def test_every_setting_that_the_tables_name_is_one() -> None:
    fields = {field.name for field in dataclasses.fields(AlgorithmSettings)}
    assert set(OPTIONAL) <= fields
    for kind in (*LOSS_KINDS.values(), *ADVANTAGE_KINDS.values()):
        assert set(kind.reads) <= set(OPTIONAL)
    of_filters = {field.name for field in dataclasses.fields(FilterSettings)}
    assert all(set(reads) <= of_filters for reads in FILTER_READS.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": "policy_gradient"}, "a group of one has no group-relative advantage"),
        ({"advantage": "reward"}, "the ratio of clipped_surrogate is to whoever sampled"),
        ({"advantage": "reward", "loss": "policy_gradient"}, ""),
        ({"advantage": "reward", "proximal": "learner"}, ""),
    ],
)
def test_given_answers_have_neither_a_group_nor_a_sampler(
    changes: dict[str, object], told: str
) -> None:
    settings = changed("grpo", samples_from="given", kl=KlSettings(), **changes)
    if told:
        with pytest.raises(ValueError, match=told):
            check(settings)
    else:
        check(settings)
