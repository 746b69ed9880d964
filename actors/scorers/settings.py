"""What a run file says of a scorer, as plain values (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

ScorerKind: TypeAlias = Literal["reward_model", "logprobs"]


@dataclass(frozen=True, slots=True)
class ScorerConfig:
    """A model that rewards call by the scorer's name. `model` is a Hugging Face folder or name, or
    `stage:NAME`, what a stage leaves. Kinds: `reward_model`, a sequence classifier with one output;
    `logprobs`, a causal language model with the policy's tokens, which says how likely each was.

    `threads` are torch threads of each worker (0: all cores that it may use), `devices` GPUs;
    `tokens_per_batch` bounds the tokens scored at once. A call that is not answered within
    `deadline_seconds` leaves its samples unscored.
    """

    model: str
    kind: ScorerKind = "reward_model"
    workers: int = 1
    threads: int = 0
    devices: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    tokens_per_batch: int = 16384
    deadline_seconds: float = 30.0

    @property
    def is_product(self) -> bool:
        """Is the model what a stage leaves?"""
        return self.model.startswith("stage:")

    @property
    def product_kind(self) -> Literal["reward_model", "weights"]:
        """What such a stage must leave."""
        return "reward_model" if self.kind == "reward_model" else "weights"


@dataclass(frozen=True, slots=True)
class ContrastConfig:
    """How far a combination goes on from the model `away` to the model `toward`, at each token: by
    w = `scale` * (sum over the vocabulary of |p_toward - p_away|) + `least` times the difference of
    their logits. A token counts `beta` / w in a loss over distributions."""

    toward: str
    away: str
    scale: float = 15.0
    least: float = 1e-3
    beta: float = 0.1


@dataclass(frozen=True, slots=True)
class Combination:
    """A model made of others: its logits are the sum of theirs, each times its coefficient, and of
    the contrast."""

    coefficients: Mapping[str, float]
    contrast: ContrastConfig | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models that it takes."""
        told = self.contrast
        also = () if told is None else (told.toward, told.away)
        return tuple(dict.fromkeys([*self.coefficients, *also]))

    def __str__(self) -> str:
        parts = [
            f"{'-' if value < 0 else '+'} {abs(value):g} x {name}"
            for name, value in self.coefficients.items()
        ]
        if self.contrast is not None:
            parts.append(f"+ w x ({self.contrast.toward} - {self.contrast.away})")
        return " ".join(parts).removeprefix("+ ")
