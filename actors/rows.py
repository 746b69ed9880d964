"""A row: one trajectory as the learner sees it, with the coefficients that the plan gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manta.envs.records import Bool, Float32, Int32


@dataclass(frozen=True, slots=True)
class Row:
    """Shapes: all arrays are [L] over the whole trajectory; `index` is its place in the plan."""

    index: int
    token_ids: Int32
    loss_mask: Bool
    behaviour_logprobs: Float32 | None
    reference_logprobs: Float32 | None
    coefficients: Mapping[str, float]

    @property
    def num_tokens(self) -> int:
        """Trained tokens."""
        return int(self.loss_mask.sum())
