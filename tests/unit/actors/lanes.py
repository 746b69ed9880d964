"""Lanes over one-digit sums, for tests of what makes and scores their groups."""

from __future__ import annotations

from dataclasses import replace

from manta.actors.lanes import Lane, RewardSpec

TOKENIZER = "char:0123456789+="


def lane(**changes: object) -> Lane:
    """Two samples of up to 4 tokens each."""
    base = Lane(
        name="rl",
        env="arithmetic",
        env_options={"digits": 1, "eval_size": 20},
        split="train",
        samples_from="policy",
        samples_per_prompt=2,
        seed=3,
        context=16,
        max_new_tokens=4,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def rewards(formula: str, **components: str) -> RewardSpec:
    return RewardSpec(formula, {name: (kind, {}) for name, kind in components.items()}, 5.0)
