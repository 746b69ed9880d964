"""How long prompts and answers are: what a simulated run draws, group by group.

Owns the distributions. Where they come from, a finished run or an assumption, is
`manta.orchestrator.plan`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from manta.envs.records import Int32


@dataclass(frozen=True, slots=True)
class GroupLengths:
    """Tokens of a group: of its prompt, and int32[n] of its samples where nothing bounds them."""

    prompt: int
    answers: Int32


class Lengths(Protocol):
    def draw(self, generator: np.random.Generator, samples: int) -> GroupLengths:
        """A group of `samples` samples, all from `generator`."""
        ...

    @property
    def longest_prompt(self) -> int: ...

    def told(self) -> str:
        """What they are, in words."""
        ...


@dataclass(frozen=True, slots=True)
class LognormalLengths:
    """Answers of lognormal length. `prompt_share` is the part of the log-length's variance that is
    the prompt's, and the same for all its samples."""

    prompt: int
    median: float
    sigma: float
    prompt_share: float = 0.0

    def draw(self, generator: np.random.Generator, samples: int) -> GroupLengths:
        normal = np.sqrt(1.0 - self.prompt_share) * generator.standard_normal(samples)
        normal += np.sqrt(self.prompt_share) * generator.standard_normal()
        answers = np.exp(np.minimum(np.log(self.median) + self.sigma * normal, 20.0))
        return GroupLengths(self.prompt, np.maximum(1, np.round(answers)).astype(np.int32))

    @property
    def longest_prompt(self) -> int:
        return self.prompt

    def told(self) -> str:
        share = f", {self.prompt_share:.0%} of the variance the prompt's" * (self.prompt_share > 0)
        return (
            f"prompts of {self.prompt:,} tokens; answers lognormal, median {self.median:,.0f}, "
            f"sigma {self.sigma:g}{share}"
        )


@dataclass(frozen=True, slots=True)
class SeenLengths:
    """Groups as they were seen, each drawn whole: samples of one prompt resemble each other. Where
    more samples are wanted than a group had, its own are drawn again."""

    groups: tuple[GroupLengths, ...]

    def __post_init__(self) -> None:
        assert self.groups, "somebody has seen something"

    def draw(self, generator: np.random.Generator, samples: int) -> GroupLengths:
        seen = self.groups[int(generator.integers(len(self.groups)))]
        count = len(seen.answers)
        places = generator.permutation(count)[:samples]
        if count < samples:
            places = np.concatenate([places, generator.integers(count, size=samples - count)])
        return GroupLengths(seen.prompt, seen.answers[places])

    @property
    def longest_prompt(self) -> int:
        return max(group.prompt for group in self.groups)

    def told(self) -> str:
        answers = np.concatenate([group.answers for group in self.groups])
        low, high = np.percentile(answers, (50, 95))
        return (
            f"{len(self.groups):,} groups as written: answers of {answers.mean():,.1f} tokens in "
            f"the mean, median {low:,.0f}, 95% at most {high:,.0f}, longest {answers.max():,}"
        )
