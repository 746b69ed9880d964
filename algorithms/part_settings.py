"""Settings of an algorithm's parts, as plain values: penalties, corrections, filters, and models
beside the policy. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FilterName: TypeAlias = Literal[
    "zero_variance", "accuracy_band", "max_variance", "process_consistency"
]
"""What they are: `manta.algorithms.filters`."""


GROUP_FILTERS = ("zero_variance", "accuracy_band")
"""Those that leave whole groups out, so that others take their places."""


@dataclass(frozen=True, slots=True)
class KlSettings:
    """KL penalty to the reference policy: `coef` times estimator, in the loss or in the reward.

    In the reward a token is charged its own KL and that of the tokens after it, each `discount`
    times what the one before it counts: with 1 all of the rest of the row, with 0 its own alone.

    With a `target`, in nats a sample, `coef` is where the coefficient begins: from step to step it
    follows what the KL is by `gain` (`manta.algorithms.kl_control`).
    """

    coef: float = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    placement: Literal["loss", "reward"] = "loss"
    discount: float = 1.0
    target: float | None = None
    gain: float = 0.1


@dataclass(frozen=True, slots=True)
class CovarianceSettings:
    """Which tokens of a step `clip_cov` and `kl_cov` treat apart, by the covariance of log-prob and
    advantage (`manta.algorithms.token_choice`), and how.

    `clip_cov` leaves out the `share` of all tokens, drawn from those between `low` and `high`.
    `kl_cov` charges `coef` times a KL to the `share` with the largest; `estimator` is that of a
    token's KL, as for the reference, or `absolute`: |log ratio|.
    """

    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    coef: float = 1.0
    estimator: Literal["absolute", "k2", "k3"] = "k3"


@dataclass(frozen=True, slots=True)
class OffPolicySettings:
    """What becomes of the importance weight of the proximal policy over the behaviour policy.

    `none` leaves it out, `weight` takes it as it is, `truncate` bounds it by `high` from above,
    `mask` leaves out of the loss what lies outside `low` to `high` (either may be absent). `level`:
    every token has its own weight, or all tokens of a row the product of theirs.
    """

    correction: Literal["none", "weight", "truncate", "mask"] = "none"
    level: Literal["token", "sequence"] = "token"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class DifficultySettings:
    """Weights of advantages by a group's share of right samples, a logistic curve that falls from
    `high` to `low`, and is half-way at `midpoint`. A sample is right whose reward is above 0.5."""

    low: float = 0.4
    high: float = 1.5
    midpoint: float = 0.75
    steepness: float = 10.0


@dataclass(frozen=True, slots=True)
class MarginWeightSettings:
    """Weights of pairs by how far apart their rewards are: a factor of the margin falls from about
    `high`, where it is small, to `low`, and is 1 at `threshold`; `steepness` is how fast."""

    low: float = 0.5
    high: float = 2.0
    threshold: float = 6.906754778648554
    steepness: float = 1.0


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """The critic of a stage: what estimates values, and how it learns.

    `model`: a value head on the policy's trunk (`shared`), or a model of its own (`own`) that
    starts from the policy's weights at the stage's start, or from those at `path`. `clip` bounds
    how far a value may move in a step and still gain by it (None: no bound); `loss_coef` is the
    factor of its loss. In the first `warmup_steps` steps of the stage only the critic trains. The
    other fields are its optimizer's; None is the policy's value.
    """

    model: Literal["shared", "own"] = "own"
    path: str | None = None
    clip: float | None = None
    loss_coef: float = 1.0
    warmup_steps: int = 0
    learning_rate: float | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class RewardModelSettings:
    """The reward model that a stage trains, a model of its own beside the policy, which stays as it
    is.

    It starts from the policy's weights at the stage's start, or from those at `path`. The other
    fields are its optimizer's; None is the policy's value.
    """

    path: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class ImplicitRewardSettings:
    """The implicit process reward model of a stage (`manta.algorithms.implicit_reward`): a model of
    its own beside the policy, which learns which rows are right and gives every token a reward.

    It starts from the policy's weights at the stage's start, or from those at `path`. `beta` is how
    much its log-ratio to the reference counts, `coef` how much its rewards do beside those of whole
    rows. A row is right whose reward is above `outcome_above`. A step's rewards are those `before`
    or `after` the model has learnt from the step (`scores`). `normalize`: they are divided by the
    largest return of the step. The other fields are its optimizer's; None is the policy's value.
    """

    path: str | None = None
    beta: float = 0.05
    coef: float = 1.0
    scores: Literal["before", "after"] = "before"
    normalize: bool = False
    outcome_above: float = 0.5
    learning_rate: float | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """A filter of groups or of samples, by its name; what each one reads stands in
    `manta.algorithms.catalogue`.

    `accuracy_band` keeps groups whose share of right samples is `low` to `high`; a sample is right
    where the reward's `component` is above 0.5. `max_variance` keeps `keep` samples of a group, and
    so does `process_consistency`, by what the component `process` says of the way to the answer.
    """

    name: FilterName
    component: str = "correct"
    process: str = "process"
    low: float = 0.2
    high: float = 0.8
    keep: int = 0
