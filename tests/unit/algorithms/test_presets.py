"""Presets are valid, and contradictory settings are refused with what to do."""

import dataclasses

import pytest

from manta.algorithms.presets import PRESETS, check
from manta.algorithms.settings import AlgorithmSettings, KlSettings


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


def test_presets_cannot_be_changed_in_place() -> None:
    with pytest.raises(TypeError):
        PRESETS["grpo"] = PRESETS["sft"]


def changed(name: str, **changes: object) -> AlgorithmSettings:
    return dataclasses.replace(PRESETS[name], **changes)


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
    ],
)
def test_sound_overrides_pass(settings: AlgorithmSettings) -> None:
    check(settings)
    assert settings.name in PRESETS
