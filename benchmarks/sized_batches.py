"""Batches of a size that is set: so many groups with so many bytes of tokens.

Owns the arithmetic of sizes, and two plug-ins: the environment whose samples have the length that a
batch asks for, and a reward that costs nothing and tells the samples of a group apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manta.envs.families.family import Family
from manta.envs.protocols import Services, Split, TaskSource
from manta.envs.records import Task, Trajectory
from manta.envs.sources.generator import GeneratedSource

SAMPLES = 8
"""Of each group."""
BYTES_PER_TOKEN = 4 + 1 + 4
"""Token id, loss mask and log-prob: what a trajectory holds of each token."""
PROMPT = "1+1="
MIB = 2**20
TASKS = 4096


@dataclass(frozen=True, order=True)
class Batch:
    """What a step trains on: `groups` of `SAMPLES` samples, about `mib` MiB together."""

    groups: int
    mib: float

    @property
    def name(self) -> str:
        return f"{self.groups} groups, {self.mib:g} MiB"

    @property
    def tokens(self) -> int:
        """Of each sample after its prompt. Raises ValueError where the batch is too small."""
        rows = self.groups * SAMPLES
        tokens = round(self.mib * MIB / (rows * BYTES_PER_TOKEN)) - len(PROMPT)
        if tokens < 1:
            raise ValueError(f"{self.name}: {rows} samples need more bytes than that")
        return tokens

    @property
    def num_bytes(self) -> int:
        return self.groups * SAMPLES * (self.tokens + len(PROMPT)) * BYTES_PER_TOKEN


class SizedAnswers(Family):
    """Every sample has `tokens` tokens, from an engine that stops nowhere before."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def source(self, split: Split) -> TaskSource:
        return GeneratedSource(TASKS, _task)

    def gold(self, task: Task) -> str:
        raise ValueError("answers of a set size are neither right nor wrong")

    def budgets(self, task: Task, num_samples: int, max_new_tokens: int) -> tuple[int, ...]:
        return (self._tokens,) * num_samples


class FirstToken:
    """The id of the first sampled token."""

    version = "first_token/1"

    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float:
        return float(trajectory.token_ids[np.argmax(trajectory.loss_mask)])


def _task(index: int) -> Task:
    return Task(id=f"sized/{index}", prompt=PROMPT, reference=None, env="sized")
