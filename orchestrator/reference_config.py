"""What a run file says of the reference policy and of its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from manta.actors.scorers.settings import Combination, ContrastConfig


@dataclass(frozen=True, slots=True)
class RefreshConfig:
    """After every `every_steps` steps of a stage the reference becomes the policy (`hard`), or
    moves towards it (`ema`): decay * reference + (1 - decay) * policy, in float32."""

    every_steps: int = 1
    how: Literal["hard", "ema"] = "hard"
    decay: float = 0.99


@dataclass(frozen=True, slots=True)
class StageReferenceConfig:
    """What the reference policy of a stage is: the weights that `model` names (see
    `manta.orchestrator.model_names`; None: the policy when the stage starts), as they are or
    following the policy; or a model whose logits are made of those of the weights that `combine`
    names, each times its number, and of a `contrast`."""

    model: str | None = None
    refresh: RefreshConfig | None = None
    combine: Mapping[str, float] = field(default_factory=dict)
    contrast: ContrastConfig | None = None

    @property
    def is_policy(self) -> bool:
        """Does it start as the policy?"""
        return self.model is None and self.combination is None

    @property
    def num_models(self) -> int:
        """That its workers hold."""
        return 1 if self.combination is None else len(self.combination.names)

    @property
    def combination(self) -> Combination | None:
        """Of several models, where it is one."""
        told = Combination(self.combine, self.contrast)
        return told if told.names else None

    @property
    def is_average(self) -> bool:
        """Is it a moving average of the policy?"""
        by_name = self.model is not None and self.model.strip().startswith("ema(")
        return by_name or (self.refresh is not None and self.refresh.how == "ema")


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """The workers that hold the reference policy. `threads` are torch threads of each (0: all cores
    that it may use); `tokens_per_batch` bounds the tokens scored at once. The others: see
    `StageReferenceConfig`; a stage may have its own."""

    model: str | None = None
    refresh: RefreshConfig | None = None
    combine: Mapping[str, float] = field(default_factory=dict)
    contrast: ContrastConfig | None = None
    workers: int = 1
    threads: int = 0
    tokens_per_batch: int = 16384
