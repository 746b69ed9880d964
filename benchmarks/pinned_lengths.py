"""Tasks whose samples have lengths known beforehand, and a reward that any trainer can compute.

One seeded table of prompts and lengths that both sides of a comparison read; Manta by the
environment `PinnedLengths` and the reward `EvenShare`. Loads no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from manta.envs.families.family import Family
from manta.envs.protocols import Services, Split, TaskSource
from manta.envs.records import Int32, Task, Trajectory
from manta.envs.rewards.version import version_of
from manta.envs.sources.generator import GeneratedSource

Workload: TypeAlias = Literal["uniform", "long_tail"]

PROMPT_TOKENS = 16
UNIFORM_TOKENS = 64
MEDIAN_TOKENS = 16
SIGMA = 1.0
CAP: dict[Workload, int] = {"uniform": UNIFORM_TOKENS, "long_tail": 256}
"""The longest sample, in tokens."""

VOCABULARY = 512
WORDS = VOCABULARY - 2
"""Ids below it are words `w0`, `w1`, ...; the last two are padding and the end token."""


@dataclass(frozen=True, slots=True)
class PinnedTable:
    """prompts int32[tasks, PROMPT_TOKENS] of word ids, lengths int32[tasks, samples] in tokens."""

    prompts: Int32
    lengths: Int32

    def text(self, task: int) -> str:
        """The prompt as words."""
        return " ".join(f"w{word}" for word in self.prompts[task])


def pinned_table(workload: Workload, tasks: int, samples: int, seed: int) -> PinnedTable:
    """Uniform: UNIFORM_TOKENS each. Long tail: lognormal, from 1 token to the cap. What a
    task has does not depend on how many there are."""
    prompts = np.zeros((tasks, PROMPT_TOKENS), np.int32)
    lengths = np.full((tasks, samples), UNIFORM_TOKENS, np.int32)
    for task in range(tasks):
        random = np.random.default_rng((seed, task))
        prompts[task] = random.integers(0, WORDS, PROMPT_TOKENS)
        if workload == "long_tail":
            draws = random.lognormal(np.log(MEDIAN_TOKENS), SIGMA, samples)
            lengths[task] = np.clip(np.rint(draws), 1, CAP[workload])
    return PinnedTable(prompts, lengths)


def even_share(token_ids: Sequence[int]) -> float:
    """The share of even ids."""
    return sum(1 for token in token_ids if token % 2 == 0) / len(token_ids)


class PinnedLengths(Family):
    """Each task's samples have the table's lengths, given `rollout.ignore_eos`."""

    def __init__(self, workload: Workload, tasks: int, samples: int, seed: int) -> None:
        self._table = pinned_table(workload, tasks, samples, seed)

    def source(self, split: Split) -> TaskSource:
        return GeneratedSource(len(self._table.prompts), self._task)

    def gold(self, task: Task) -> str:
        raise ValueError("pinned lengths have no right answers")

    def budgets(self, task: Task, num_samples: int, max_new_tokens: int) -> tuple[int, ...]:
        """Raises ValueError where the run asks for other samples than the table holds."""
        lengths = self._table.lengths[int(task.facts["index"])].tolist()
        if len(lengths) != num_samples:
            raise ValueError(f"the table pins {len(lengths)} samples a prompt, not {num_samples}")
        return tuple(lengths)

    def _task(self, index: int) -> Task:
        return Task(
            id=f"pinned/{index}",
            prompt=self._table.text(index),
            reference=None,
            env="pinned_lengths",
            facts={"index": float(index)},
        )


class EvenShare:
    """`even_share` of the trained tokens."""

    def __init__(self) -> None:
        self.version = version_of("even_share", {}, sys.modules[__name__])

    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float:
        return even_share(trajectory.token_ids[trajectory.loss_mask].tolist())
