"""What both sides of a comparison are to do: the numbers of a small GRPO run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from benchmarks.pinned_lengths import CAP, PinnedTable, Workload, pinned_table
from manta.envs.sources.order import EpochOrder

STD_EPSILON = 1e-4
"""What TRL adds to the standard deviation of a group's rewards."""


@dataclass(frozen=True, slots=True)
class GrpoWork:
    """`steps` steps of `prompts` prompts with `samples` samples each, one update a step, on
    `threads` cores."""

    workload: Workload
    steps: int
    prompts: int = 8
    samples: int = 8
    threads: int = 2
    seed: int = 0
    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 0.2
    clip_norm: float = 1.0

    @property
    def cap(self) -> int:
        return CAP[self.workload]

    @property
    def tasks(self) -> int:
        return self.steps * self.prompts

    def table(self) -> PinnedTable:
        return pinned_table(self.workload, self.tasks, self.samples, self.seed)

    def tasks_by_step(self) -> list[list[int]]:
        """The tasks of each step, in the order in which Manta meets them."""
        order = EpochOrder(self.tasks, self.seed)
        places = [order.index(0, place) for place in range(self.tasks)]
        return [places[at : at + self.prompts] for at in range(0, self.tasks, self.prompts)]

    def written(self) -> str:
        """As JSON, for a command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> GrpoWork:
        values = json.loads(text)
        return GrpoWork(**{**values, "betas": tuple(values["betas"])})
