"""What an algorithm is made of, as plain values. Loads no torch, so that a run file can be checked.

The defaults of the fields mean "as simple as it gets"; published settings are the presets in
`manta.algorithms.presets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from manta.algorithms.condition import ConditionSettings
from manta.algorithms.part_settings import (
    GROUP_FILTERS,
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
from manta.algorithms.teacher_settings import TeacherSettings

Advantage: TypeAlias = Literal[
    "group_relative",
    "reward",
    "gae",
    "leave_one_out",
    "length_weighted",
    "decoupled",
    "pass_at_k",
    "max_likelihood",
    "win_rate",
    "greedy_baseline",
    "alignment",
    "length_penalized",
    "difficulty_weighted",
    "return_to_go",
    "turn_mixed",
    "none",
]
"""What they are: `manta.algorithms.advantages`. What they read: `manta.algorithms.catalogue`."""

LossName: TypeAlias = Literal[
    "clipped_surrogate",
    "gspo",
    "gspo_token",
    "cispo",
    "gmpo",
    "sapo",
    "policy_gradient",
    "rover",
    "clip_cov",
    "kl_cov",
    "cross_entropy",
    "teacher_kl",
    "dpo",
    "xpo",
    "ipo",
    "simpo",
    "kto",
    "pacs",
    "bradley_terry",
]
"""What they are: `manta.algorithms.losses`, `teacher_kl` and `coupled_losses`."""


PairsName: TypeAlias = Literal["best_worst", "all", "companion"]
"""What they are: `manta.algorithms.pairs`."""

PAIR_LOSSES = ("dpo", "xpo", "ipo", "simpo", "bradley_terry")
"""Those that compare rows of a prompt."""

LABEL_LOSSES = ("kto", "pacs")
"""Those that couple rows, and tell good ones from others by a label."""

COUPLED_LOSSES = (*PAIR_LOSSES, *LABEL_LOSSES)
"""Those of `manta.algorithms.coupled_losses`."""

CHOOSING_LOSSES = ("clip_cov", "kl_cov")
"""Those that treat some tokens of a step apart."""

REFERENCE_LOSSES = ("dpo", "xpo", "ipo", "kto", "teacher_kl")
"""Those that compare the policy with a reference, whatever the KL penalty is."""


@dataclass(frozen=True, slots=True)
class AlgorithmSettings:
    """A resolved algorithm. `name` is the preset that it started from.

    `samples_from`: `policy` (engines sample) or `given` (gold answers or written trajectories).
    `proximal`: the log-probs in the ratio's denominator are the engine's (`behaviour`), or the
    learner's own at the start of the step (`learner`); `off_policy` corrects for how the two
    differ, and needs the latter. `advantage: gae` is made from the values of `critic`; `gamma` and
    `gae_lambda` are its own, as `pass_k` is of `pass_at_k`, `difficulty` of `difficulty_weighted`,
    and `component_weights` of `decoupled` (the reward's components by name; none: all with weight
    1). In `length_penalized` the `penalized_share` of a step's groups that is right most often pays
    for length, up to `length_penalty`. `return_to_go` sums what is paid from a token on, or from
    its turn on (`credit`); `turn_mixed` weighs turns' returns by `turn_weight` and their own
    rewards, normalised over `mixed_over`, by the rest; `gamma` is theirs too. `advantage: none` is
    0 everywhere: what there is to learn from is the KL alone.

    `clip_low` and `clip_high` are read by the losses that bound the ratio, each in its own way;
    `dual_clip` by `clipped_surrogate`, `tau_positive` and `tau_negative` by `sapo`, `rho` and
    `successor_weight` (of a token's value, and of what follows it) by `rover`, `covariance` by
    `CHOOSING_LOSSES`. `constant_length` is the divisor of the `sequence_sum_constant` aggregation.
    `filters` are applied in their order, to what the ones before have left.

    `unit` is what a loss is computed over: rows, or (`PAIR_LOSSES`) pairs of rows of a prompt, of
    which one has the higher reward. With `pair` every pair counts the same, with `group` every
    prompt does, whatever its number of pairs. `pairs` says which a group has
    (`manta.algorithms.pairs`), of those whose rewards differ by `pair_margin` at least. `beta` is
    how much the log-ratio to the reference counts; with `length_normalized` that is the mean over
    a row's tokens, not the sum. `exploration_coef` is XPO's, `target_margin` SimPO's; with
    `margin_weight` a pair of `dpo` counts by how far apart its rewards are. In KTO and PACS a row
    is desirable whose reward is above `desirable_above`. In KTO `reference_point` is what
    log-ratios are compared with, and the weights are of rows that are desirable and that are not.
    PACS couples a prompt's samples (`group`); with `balance_classes` desirable ones and others
    weigh the same in it. `reward_model` is what `bradley_terry` trains, in the place of the policy;
    `implicit_reward` trains beside it, and its token rewards come on top of the advantage
    `leave_one_out`.

    `companion` is a further row of each prompt, beside its samples: the policy's `greedy` answer,
    which never trains and whose reward is the baseline of `greedy_baseline`; the environment's
    (`given`), which stands in the group like a sample and trains, and to which `alignment` gives
    `imitation_coef` and `alignment_coef`; or a sample of another stage (`written`), to compare.

    `cross_entropy` imitates rows: of each group the `keep_best` of the highest rewards (0: all),
    of these the ones whose reward is above `keep_above`, each with the weight
    `exp(reward / reward_temperature)` (None: they count the same), under its tag of `condition`.
    With `train_feedback` the environment's turns train too. `teacher` is of `teacher_kl`.
    """

    name: str
    samples_from: Literal["policy", "given"] = "policy"
    samples_per_prompt: int = 1
    companion: Literal["none", "greedy", "given", "written"] = "none"
    advantage: Advantage = "group_relative"
    divide_by_std: bool = True
    std_epsilon: float = 1e-6
    gamma: float = 1.0
    gae_lambda: float = 1.0
    pass_k: int = 1
    imitation_coef: float = 0.5
    alignment_coef: float = 0.6
    penalized_share: float = 0.2
    length_penalty: float = 0.2
    difficulty: DifficultySettings = field(default_factory=DifficultySettings)
    component_weights: Mapping[str, float] = field(default_factory=dict)
    credit: Literal["token", "turn"] = "token"
    turn_weight: float = 0.5
    mixed_over: Literal["group", "step"] = "group"
    critic: CriticSettings | None = None
    loss: LossName = "clipped_surrogate"
    unit: Literal["row", "pair", "group"] = "row"
    pairs: PairsName = "best_worst"
    pair_margin: float = 0.0
    beta: float = 0.1
    exploration_coef: float = 0.0
    length_normalized: bool = False
    target_margin: float = 0.5
    margin_weight: MarginWeightSettings | None = None
    reference_point: Literal["samples", "other_class", "zero"] = "samples"
    desirable_above: float = 0.5
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    balance_classes: bool = False
    keep_best: int = 0
    keep_above: float | None = None
    reward_temperature: float | None = None
    condition: ConditionSettings | None = None
    train_feedback: bool = False
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    reward_model: RewardModelSettings | None = None
    implicit_reward: ImplicitRewardSettings | None = None
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    rho: float = 1.0
    successor_weight: float = 1.0
    covariance: CovarianceSettings = field(default_factory=CovarianceSettings)
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum_constant"] = "token_mean"
    constant_length: int = 0
    kl: KlSettings = field(default_factory=KlSettings)
    entropy_coef: float = 0.0
    proximal: Literal["behaviour", "learner"] = "behaviour"
    off_policy: OffPolicySettings = field(default_factory=OffPolicySettings)
    whiten_advantages: bool = False
    filters: tuple[FilterSettings, ...] = ()

    @property
    def chooses_tokens(self) -> bool:
        """Does the loss treat some tokens of a step apart?"""
        return self.loss in CHOOSING_LOSSES

    @property
    def is_coupled(self) -> bool:
        """Does the loss look at several rows at once?"""
        return self.loss in COUPLED_LOSSES

    @property
    def is_paired(self) -> bool:
        """Does the loss compare samples of a prompt?"""
        return self.loss in PAIR_LOSSES

    @property
    def selects_rows(self) -> bool:
        """Do rewards say which rows are imitated, how much, or under which tag?"""
        told = (self.keep_above, self.reward_temperature, self.condition)
        return self.loss == "cross_entropy" and (self.keep_best > 0 or told != (None,) * 3)

    @property
    def reads_rewards(self) -> bool:
        """Does what is learnt depend on the rewards?"""
        if self.loss == "cross_entropy":
            return self.selects_rows
        return self.is_coupled or self.advantage != "none"

    @property
    def reads_turns(self) -> bool:
        """Is a turn of the policy one action to the advantage?"""
        by_turn = self.advantage == "return_to_go" and self.credit == "turn"
        return by_turn or self.advantage == "turn_mixed"

    @property
    def filters_groups(self) -> bool:
        """May a whole group be left out of training for its rewards?"""
        is_bounded = self.loss == "cross_entropy" and self.keep_above is not None
        filters = any(each.name in GROUP_FILTERS for each in self.filters)
        return filters or self.is_paired or is_bounded

    @property
    def compares_given(self) -> bool:
        """Are the rows of a prompt all of its written answers?"""
        return self.samples_from == "given" and (self.is_coupled or self.selects_rows)

    @property
    def needs_reference(self) -> bool:
        compares = self.loss in REFERENCE_LOSSES or self.implicit_reward is not None
        return self.kl.coef != 0.0 or compares

    @property
    def trained_rows(self) -> int:
        """The most rows of a prompt that train."""
        kept = [each.keep for each in self.filters if each.name not in GROUP_FILTERS]
        return min([self.samples_per_prompt, *kept]) + (self.companion in ("given", "written"))

    @property
    def rows_per_prompt(self) -> int:
        """Its samples, and the companion."""
        return self.samples_per_prompt + (self.companion != "none")
