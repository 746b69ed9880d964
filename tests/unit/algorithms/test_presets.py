"""Presets are valid, and contradictory settings are refused with what to do."""

import dataclasses

import pytest

from manta.algorithms.presets import PRESETS, check
from manta.algorithms.settings import AlgorithmSettings, KlSettings, OffPolicySettings


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_valid_and_named_after_its_key(name: str) -> None:
    check(PRESETS[name])
    assert PRESETS[name].name == name


def test_grpo_is_the_published_setting() -> None:
    grpo = PRESETS["grpo"]
    assert (grpo.samples_per_prompt, grpo.aggregation, grpo.divide_by_std) == (
        64,
        "sequence_mean",
        True,
    )
    assert grpo.kl == KlSettings(coef=0.04, estimator="k3", placement="loss")
    assert grpo.needs_reference


def test_icepop_is_the_published_setting() -> None:
    icepop = PRESETS["icepop"]
    assert icepop.off_policy == OffPolicySettings("mask", "token", low=0.5, high=5.0)
    assert (icepop.samples_per_prompt, icepop.aggregation) == (8, "sequence_mean")
    assert icepop.kl.coef == 0.0


def test_the_other_presets_correct_for_nothing() -> None:
    told = {name: preset.off_policy.correction for name, preset in PRESETS.items()}
    assert {name for name, correction in told.items() if correction != "none"} == {"icepop"}


def test_presets_cannot_be_changed_in_place() -> None:
    with pytest.raises(TypeError):
        PRESETS["grpo"] = PRESETS["sft"]


def changed(name: str, **changes: object) -> AlgorithmSettings:
    return dataclasses.replace(PRESETS[name], **changes)


def off_policy(correction: str, **told: object) -> AlgorithmSettings:
    settings = OffPolicySettings(correction, **told)  # type: ignore[arg-type]
    return changed("grpo", proximal="learner", off_policy=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (changed("grpo", samples_per_prompt=1), "group of one has no group-relative advantage"),
        (changed("grpo", samples_per_prompt=0), "samples_per_prompt is 0"),
        (changed("reinforce", drop_zero_variance_groups=True), "would drop every group of one"),
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
        (
            changed("sft", advantage="group_relative", samples_per_prompt=4),
            "`advantage: group_relative` has no effect",
        ),
        (
            changed("sft", samples_per_prompt=4, drop_zero_variance_groups=True),
            "`drop_zero_variance_groups` has no effect",
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
        off_policy("weight", level="sequence"),
        off_policy("truncate", high=1.0),
        off_policy("mask", high=3.0),
    ],
)
def test_sound_overrides_pass(settings: AlgorithmSettings) -> None:
    check(settings)
    assert settings.name in PRESETS
