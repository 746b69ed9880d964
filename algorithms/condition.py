"""Conditions: the tags that tell a policy how good an answer is, as plain values. Loads no torch.

Where a tag stands in a prompt is `manta.envs.render`'s, which rows get which one and how they then
train is `manta.envs.hindsight`'s.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConditionSettings:
    """A row that trains has the tag of its reward before its prompt: `tags`, the worst one first,
    are as many classes, parted by the rising `bounds`; a reward above k of them is of class k
    (counted from 0). What is sampled has the last tag: the best."""

    tags: tuple[str, ...]
    bounds: tuple[float, ...] = (0.5,)

    @property
    def best(self) -> str:
        return self.tags[-1] if self.tags else ""
