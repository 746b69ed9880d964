"""Presets are valid, and the published settings."""

from typing import get_args

import pytest

from manta.algorithms.catalogue import compares_samples, idles_on_equal_rewards
from manta.algorithms.contradictions import check
from manta.algorithms.part_settings import (
    CovarianceSettings,
    CriticSettings,
    DifficultySettings,
    FilterSettings,
    ImplicitRewardSettings,
    KlSettings,
    MarginWeightSettings,
    OffPolicySettings,
    RewardModelSettings,
)
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import Advantage, LossName


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


def test_ppo_is_the_published_setting() -> None:
    ppo = PRESETS["ppo"]
    assert (ppo.advantage, ppo.gamma, ppo.gae_lambda) == ("gae", 1.0, 0.95)
    assert (ppo.clip_low, ppo.clip_high, ppo.whiten_advantages) == (0.2, 0.2, True)
    assert ppo.critic == CriticSettings("own", clip=0.2, loss_coef=0.1)
    assert ppo.kl == KlSettings(coef=0.02, estimator="k1", placement="reward")
    assert ppo.needs_reference and ppo.proximal == "learner"
    assert {name for name, each in PRESETS.items() if each.critic} == {"ppo", "rto"}


def test_those_with_a_row_beside_the_samples_are_the_published_settings() -> None:
    remax, grao = PRESETS["remax"], PRESETS["grao"]
    assert (remax.companion, remax.advantage) == ("greedy", "greedy_baseline")
    assert remax.samples_per_prompt == 1
    assert remax.kl == KlSettings(coef=0.05, estimator="k1", placement="reward", discount=0.0)
    assert (remax.loss, remax.aggregation) == ("policy_gradient", "token_mean")
    assert (grao.companion, grao.advantage, grao.samples_per_prompt) == ("given", "alignment", 8)
    assert (grao.imitation_coef, grao.alignment_coef, grao.kl.coef) == (0.5, 0.6, 0.0)
    assert (grao.loss, grao.aggregation) == ("policy_gradient", "sequence_mean")
    beside = {name for name, preset in PRESETS.items() if preset.companion != "none"}
    assert beside == {"remax", "grao", "xpo"}
    xpo, dpo = PRESETS["xpo"], PRESETS["online_dpo"]
    assert (xpo.companion, xpo.pairs, xpo.exploration_coef) == ("written", "companion", 1e-5)
    assert (xpo.beta, xpo.unit, xpo.samples_per_prompt) == (dpo.beta, dpo.unit, 1)
    assert xpo.needs_reference and xpo.filters_groups and xpo.trained_rows == 2


def test_prime_is_the_published_setting() -> None:
    prime = PRESETS["prime"]
    assert (prime.samples_per_prompt, prime.advantage) == (4, "leave_one_out")
    assert prime.implicit_reward == ImplicitRewardSettings(beta=0.05, learning_rate=1e-6)
    assert prime.implicit_reward.scores == "before"
    assert prime.filters == (FilterSettings("accuracy_band", low=0.2, high=0.8),)
    assert prime.needs_reference and prime.filters_groups and prime.kl.coef == 0.0
    assert {name for name, each in PRESETS.items() if each.implicit_reward} == {"prime"}


def test_clip_cov_and_kl_cov_are_the_published_settings() -> None:
    clip_cov, kl_cov = PRESETS["clip_cov"], PRESETS["kl_cov"]
    assert clip_cov.covariance == CovarianceSettings(share=2e-4, low=1.0, high=5.0)
    assert kl_cov.covariance == CovarianceSettings(share=2e-3, coef=1.0, estimator="k3")
    assert {n for n, each in PRESETS.items() if each.chooses_tokens} == {"clip_cov", "kl_cov"}
    assert all(each.samples_per_prompt == 8 and each.filters_groups for each in (clip_cov, kl_cov))


def test_dpo_is_the_published_setting() -> None:
    dpo = PRESETS["dpo"]
    assert (dpo.loss, dpo.unit, dpo.pairs, dpo.beta) == ("dpo", "pair", "best_worst", 0.1)
    assert (dpo.samples_from, dpo.samples_per_prompt) == ("given", 2)
    assert dpo.is_coupled and dpo.compares_given and dpo.needs_reference
    assert dpo.kl.coef == 0.0


def test_reward_model_is_the_published_setting() -> None:
    found = PRESETS["reward_model"]
    assert (found.loss, found.unit, found.pairs) == ("bradley_terry", "group", "all")
    assert found.reward_model == RewardModelSettings()
    assert found.is_coupled and not found.needs_reference
    coupled = {name for name, each in PRESETS.items() if each.is_coupled}
    pairs = {"dpo", "madpo", "online_dpo", "xpo", "ipo", "simpo", "reward_model"}
    assert coupled == {*pairs, "kto", "pacs"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("online_dpo", {"loss": "dpo", "beta": 0.1, "samples_per_prompt": 2}),
        ("madpo", {"loss": "dpo", "beta": 0.1, "margin_weight": MarginWeightSettings(0.5, 2.0)}),
        ("ipo", {"loss": "ipo", "beta": 0.1, "length_normalized": True}),
        ("simpo", {"loss": "simpo", "beta": 2.0, "target_margin": 0.5}),
        ("kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "unit": "row"}),
        ("pacs", {"beta": 1.0, "balance_classes": True, "unit": "group", "samples_per_prompt": 8}),
        ("raft", {"loss": "cross_entropy", "keep_best": 1, "keep_above": None}),
        ("rejection_sampling", {"keep_best": 0, "keep_above": 0.5}),
        ("weighted_sft", {"reward_temperature": 1.0, "samples_from": "given"}),
        ("c_rlft", {"reward_temperature": 1.0, "samples_from": "given", "train_feedback": False}),
        ("leti", {"reward_temperature": None, "samples_per_prompt": 128, "train_feedback": True}),
        ("rover", {"divide_by_std": False, "rho": 1.0, "successor_weight": 1.0}),
        ("grpo_lambda", {"advantage": "length_penalized", "penalized_share": 0.2}),
        ("grpo_lead", {"difficulty": DifficultySettings(0.4, 1.5, 0.75, 10.0)}),
        (
            "prof",
            {"filters": (FilterSettings("process_consistency", keep=4),), "trained_rows": 4},
        ),
        ("spo", {"advantage": "win_rate", "divide_by_std": False}),
        ("mapo", {"advantage": "turn_mixed", "turn_weight": 0.5, "mixed_over": "group"}),
        ("rto", {"gae_lambda": 0.95, "gamma": 1.0, "kl": KlSettings(0.01, "k1", "reward")}),
        ("reinforce_to_go", {"advantage": "return_to_go", "whiten_advantages": True}),
        ("distillation", {"advantage": "none", "kl": KlSettings(1.0, "k1", "reward", 0.0)}),
    ],
)
def test_other_presets_are_the_published_settings(name: str, told: dict[str, object]) -> None:
    assert {key: getattr(PRESETS[name], key) for key in told} == told


def test_who_samples_who_compares_and_who_reads_rewards() -> None:
    online = {n for n, p in PRESETS.items() if p.is_paired and p.samples_from == "policy"}
    assert online == {"online_dpo", "xpo"}
    assert {n for n, p in PRESETS.items() if p.compares_given} == {
        *("dpo", "madpo", "ipo", "simpo", "kto", "reward_model", "weighted_sft", "c_rlft")
    }
    assert {n for n, p in PRESETS.items() if not p.reads_rewards} == {
        "sft",
        "distillation",
        "topk_distillation",
        "align_distil",
    }
    assert {n for n, p in PRESETS.items() if p.selects_rows} == {
        *("raft", "rejection_sampling", "weighted_sft", "c_rlft", "leti")
    }
    filtering = {n for n, p in PRESETS.items() if p.filters_groups}
    assert filtering >= {"dapo", "dpo", "simpo", "rejection_sampling"}
    assert not filtering & {"grpo", "kto", "raft", "distillation", "sft"}
    assert PRESETS["kto"].needs_reference and not PRESETS["simpo"].needs_reference


def test_the_other_presets_correct_for_nothing() -> None:
    told = {name: preset.off_policy.correction for name, preset in PRESETS.items()}
    corrected = {name for name, correction in told.items() if correction != "none"}
    assert corrected == {"icepop", "tis"}


def test_every_loss_and_advantage_has_a_preset() -> None:
    assert {preset.loss for preset in PRESETS.values()} == set(get_args(LossName))
    assert {preset.advantage for preset in PRESETS.values()} == set(get_args(Advantage))


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("gspo", (3e-4, 4e-4)),
        ("cispo", (1.0, 4.0)),
        ("gmpo", (0.4, 0.4)),
        ("clip_cov", (1.0, 1.0)),
        ("tis", (0.2, 0.28)),
    ],
)
def test_bounds_are_the_published_ones(name: str, bounds: tuple[float, float]) -> None:
    assert (PRESETS[name].clip_low, PRESETS[name].clip_high) == bounds


def test_presets_cannot_be_changed_in_place() -> None:
    with pytest.raises(TypeError):
        PRESETS["grpo"] = PRESETS["sft"]


def test_which_presets_compare_the_samples_of_a_prompt() -> None:
    compare = {name for name, preset in PRESETS.items() if compares_samples(preset)}
    assert {"grpo", "dapo", "rloo", "gspo", "dpo", "reward_model", "pacs"} <= compare
    assert not {"sft", "ppo", "reinforce", "reinforce_plus_plus", "mapo", "xpo"} & compare
    idle = {name for name, preset in PRESETS.items() if idles_on_equal_rewards(preset)}
    assert {"grpo", "dr_grpo", "rloo", "gspo", "pacs", "spo"} <= idle < compare
    replaced = {"dapo", "tis", "clip_cov", "online_dpo", "dpo", "reward_model"}
    taught = {"grao", "grpo_lambda", "gdpo", "prime"}
    assert not (replaced | taught) & idle
