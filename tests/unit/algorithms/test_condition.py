"""Tags by reward and feedback that trains: what the settings refuse, and what they are."""

from __future__ import annotations

import dataclasses

import pytest

from manta.algorithms.catalogue import LOSS_KINDS
from manta.algorithms.condition import ConditionSettings
from manta.algorithms.contradictions import check
from manta.algorithms.part_settings import KlSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings

LETI, C_RLFT = PRESETS["leti"], PRESETS["c_rlft"]
TWO = ConditionSettings(("bad", "good"))


def changed(name: str, **changes: object) -> AlgorithmSettings:
    return dataclasses.replace(PRESETS[name], **changes)  # type: ignore[arg-type]


def tagged(*tags: str, bounds: tuple[float, ...] = (0.5,)) -> AlgorithmSettings:
    return dataclasses.replace(LETI, condition=ConditionSettings(tags, bounds))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            changed("grpo", condition=TWO),
            "condition learns rows under other prompts than they were sampled with, and the loss "
            "clipped_surrogate is of rows as they were sampled: set loss to cross_entropy",
        ),
        (changed("leti", loss="gspo"), "and the loss gspo is of rows as they were sampled"),
        (changed("dpo", condition=TWO), "and the loss dpo is of rows as they were sampled"),
        (
            changed("grao", train_feedback=True),
            "train_feedback learns tokens that the policy did not sample, and the loss "
            "policy_gradient",
        ),
        (changed("leti", kl=KlSettings(0.1)), "set kl.coef to 0, or condition to null"),
        (
            changed("leti", kl=KlSettings(0.1), condition=None),
            "set kl.coef to 0, or train_feedback to false",
        ),
        (tagged("same", "same"), "'same' stands in them more than once"),
        (tagged("a", "b", "a", bounds=(0, 1)), "'a' stands in them more than once"),
        (tagged("good", bounds=()), "give two at least, the worst one first"),
        (tagged(bounds=()), "give two at least, the worst one first"),
        (tagged("a", "b", "c"), "3 tags are parted by 2, found 1: [0.5]"),
        (tagged("a", "b", bounds=()), "2 tags are parted by 1, found 0: []"),
        (tagged("a", "b", "c", bounds=(1.0, 1.0)), "they must be finite numbers that rise"),
        (tagged("a", "b", bounds=(float("nan"),)), "they must be finite numbers that rise"),
        (changed("leti", keep_above=0.5), "no row of the first tag would train"),
        (changed("leti", filters=PRESETS["dapo"].filters), "`filters` has no effect"),
    ],
)
def test_contradictions_say_what_to_do(settings: AlgorithmSettings, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        check(settings)
    assert message in str(raised.value)


def test_sound_settings_pass() -> None:
    sound = [
        *(LETI, C_RLFT, tagged("", "good"), tagged("c", "b", "a", bounds=(-1.0, 2.0))),
        changed("raft", condition=TWO),
        changed("leti", keep_above=0.2, condition=ConditionSettings(("b", "g"), (0.5,))),
        changed("weighted_sft", condition=TWO, samples_from="policy"),
        changed("leti", condition=None),
    ]
    for settings in sound:
        check(settings)


def test_every_loss_but_imitation_refuses_both() -> None:
    for name, preset in PRESETS.items():
        for changes in ({"condition": TWO}, {"train_feedback": True}):
            settings = dataclasses.replace(preset, **changes)  # type: ignore[arg-type]
            if preset.loss == "cross_entropy" and name != "rejection_sampling":
                check(settings)
            elif preset.loss != "cross_entropy":
                with pytest.raises(ValueError, match="is of rows as they were sampled"):
                    check(settings)
    assert sum(kind.ratio is None for kind in LOSS_KINDS.values()) > 1


def test_tags_make_rewards_count() -> None:
    assert LETI.reads_rewards and LETI.selects_rows and not LETI.compares_given
    assert C_RLFT.compares_given, "all answers of a prompt, not the gold one alone"
    sft = changed("sft", condition=TWO)
    assert sft.compares_given and sft.reads_rewards
    assert not changed("leti", condition=None).reads_rewards
    assert (TWO.best, TWO.bounds) == ("good", (0.5,))
