"""What each loss, advantage and filter is and reads, as plain values. Loads no torch.

The functions stand under the same names in `manta.algorithms.losses`, `teacher_kl`,
`coupled_losses`, `advantages` and `filters`; the checks on a run file's settings follow these
tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from manta.algorithms.settings import AlgorithmSettings

_CLIP = ("clip_low", "clip_high")
_PAIRS = ("pairs", "pair_margin")
_LABELS = ("reference_point", "desirable_above", "desirable_weight", "undesirable_weight")


@dataclass(frozen=True, slots=True)
class LossKind:
    """`ratio`: whose importance ratio a loss bounds, a token's or a whole row's (None: it has
    none). `reads`: settings that other losses may have no use for. `needs_row_advantage`: it is
    defined only where all tokens of a row have one advantage. `needs_vocabulary`: it reads the mean
    over the vocabulary of the policy's log-probs, now and at the start of the step. `is_plain`: it
    weighs log-probs by advantages, without a ratio. `needs_start`: it has no ratio, and compares
    with the policy at the start of the step. `needs_likeliest`: it reads what the reference finds
    likely where each token stands."""

    ratio: Literal["token", "sequence"] | None
    reads: tuple[str, ...] = ()
    needs_row_advantage: bool = False
    needs_vocabulary: bool = False
    is_plain: bool = False
    needs_start: bool = False
    needs_likeliest: bool = False

    @property
    def uses_advantages(self) -> bool:
        return self.ratio is not None or self.is_plain


LOSS_KINDS: Mapping[str, LossKind] = {
    "clipped_surrogate": LossKind("token", (*_CLIP, "dual_clip")),
    "gspo": LossKind("sequence", _CLIP, needs_row_advantage=True),
    "gspo_token": LossKind("sequence", _CLIP),
    "cispo": LossKind("token", _CLIP),
    "gmpo": LossKind("sequence", _CLIP, needs_row_advantage=True),
    "sapo": LossKind("token", ("tau_positive", "tau_negative")),
    "policy_gradient": LossKind(None, is_plain=True),
    "rover": LossKind("token", ("rho", "successor_weight"), needs_vocabulary=True),
    "clip_cov": LossKind("token", _CLIP),
    "kl_cov": LossKind("token"),
    "cross_entropy": LossKind(None, ("keep_best", "keep_above", "reward_temperature")),
    "teacher_kl": LossKind(None, ("teacher",), needs_likeliest=True),
    "dpo": LossKind(None, (*_PAIRS, "beta", "length_normalized", "margin_weight")),
    "xpo": LossKind(None, (*_PAIRS, "beta", "exploration_coef")),
    "ipo": LossKind(None, (*_PAIRS, "beta", "length_normalized")),
    "simpo": LossKind(None, (*_PAIRS, "beta", "target_margin")),
    "kto": LossKind(None, ("beta", *_LABELS)),
    "pacs": LossKind(None, ("beta", "desirable_above", "balance_classes"), needs_start=True),
    "bradley_terry": LossKind(None, _PAIRS),
}


@dataclass(frozen=True, slots=True)
class AdvantageKind:
    """`needs_group`: a prompt's samples are compared with each other, so that a sample alone has
    none. `reads`: as of `LossKind`. `companions`: what it can take beside the samples; where that
    lacks `none`, it needs one. `reads_within`: rewards within a row count, and tokens of a row
    differ in their advantages. `counts_right`: it estimates from a prompt's samples how often the
    prompt is solved. `parts_equals`: samples of equal rewards may have other advantages."""

    needs_group: bool
    reads: tuple[str, ...] = ()
    companions: tuple[str, ...] = ("none",)
    reads_within: bool = False
    counts_right: bool = False
    parts_equals: bool = False


ADVANTAGE_KINDS: Mapping[str, AdvantageKind] = {
    "group_relative": AdvantageKind(True, ("divide_by_std", "std_epsilon"), ("none", "given")),
    "reward": AdvantageKind(False),
    "gae": AdvantageKind(False, ("gamma", "gae_lambda"), reads_within=True),
    "leave_one_out": AdvantageKind(True),
    "length_weighted": AdvantageKind(True),
    "decoupled": AdvantageKind(True, ("component_weights", "std_epsilon"), parts_equals=True),
    "pass_at_k": AdvantageKind(True, ("pass_k", "std_epsilon"), counts_right=True),
    "max_likelihood": AdvantageKind(True, counts_right=True),
    "win_rate": AdvantageKind(True, ("divide_by_std", "std_epsilon")),
    "greedy_baseline": AdvantageKind(False, companions=("greedy",)),
    "alignment": AdvantageKind(
        True, ("divide_by_std", "std_epsilon", "imitation_coef", "alignment_coef"), ("given",)
    ),
    "length_penalized": AdvantageKind(
        True,
        ("penalized_share", "length_penalty", "std_epsilon"),
        counts_right=True,
        parts_equals=True,
    ),
    "difficulty_weighted": AdvantageKind(True, ("difficulty", "std_epsilon"), counts_right=True),
    "return_to_go": AdvantageKind(False, ("gamma", "credit"), reads_within=True),
    "turn_mixed": AdvantageKind(
        True, ("gamma", "turn_weight", "mixed_over", "std_epsilon"), reads_within=True
    ),
    "none": AdvantageKind(False),
}


FILTER_READS: Mapping[str, tuple[str, ...]] = {
    "zero_variance": (),
    "accuracy_band": ("component", "low", "high"),
    "max_variance": ("keep",),
    "process_consistency": ("component", "process", "keep"),
}
"""What of `FilterSettings` a filter reads."""


def compares_samples(settings: AlgorithmSettings) -> bool:
    """Does what is learnt depend on how the samples of a prompt differ in reward alone? Samples of
    equal rewards may have turns that differ, or differ from the row beside them."""
    kind = ADVANTAGE_KINDS[settings.advantage]
    if settings.is_paired and settings.pairs == "companion":
        return False
    return settings.unit != "row" or (
        LOSS_KINDS[settings.loss].uses_advantages and kind.needs_group and not kind.reads_within
    )


def idles_on_equal_rewards(settings: AlgorithmSettings) -> bool:
    """Does a prompt whose samples have equal rewards train, and teach nothing? Losses of pairs and
    the filter `zero_variance` put another one in its place; a given answer beside the samples and
    rewards of tokens make equal ones differ, as some advantages do."""
    return (
        compares_samples(settings)
        and not settings.is_paired
        and all(told.name != "zero_variance" for told in settings.filters)
        and settings.companion == "none"
        and not ADVANTAGE_KINDS[settings.advantage].parts_equals
        and settings.implicit_reward is None
    )


def reference_top_k(settings: AlgorithmSettings) -> int:
    """Of how many tokens the reference is to say how likely they are, where each trained token
    stands; 0: of the sampled one alone."""
    return settings.teacher.top_k if LOSS_KINDS[settings.loss].needs_likeliest else 0


def readers(setting: str) -> tuple[Literal["loss", "advantage"], list[str]]:
    """Whether losses or advantages read `setting`, and which ones."""
    losses = [name for name, kind in LOSS_KINDS.items() if setting in kind.reads]
    if losses:
        return "loss", losses
    return "advantage", [name for name, kind in ADVANTAGE_KINDS.items() if setting in kind.reads]


_READ = [kind.reads for kind in LOSS_KINDS.values()]
_READ += [kind.reads for kind in ADVANTAGE_KINDS.values()]

OPTIONAL: tuple[str, ...] = tuple(dict.fromkeys(name for reads in _READ for name in reads))
"""Every setting that only some losses or advantages read."""
