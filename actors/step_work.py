"""What driver and learner ranks tell each other, through the mailbox: steps, orders and reports.

Owns the shape of what is said. Who gets it, and when, is `manta.actors.step_log`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from manta.actors.backends.schedule import NO_RESIDENTS, ResidentRates
from manta.actors.device_place import DevicePlace
from manta.actors.histogram import Histogram
from manta.actors.stored_folder import WrittenFile
from manta.actors.weights import Weights
from manta.envs.packing import Block
from manta.envs.records import Float32, WeightVersion
from manta.envs.step_records import StepPlan, Update

if TYPE_CHECKING:
    import ray

Place = tuple[int, int]
"""Where a group is: the index of its block, and its entry there."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """One step for all ranks. Group g of the plan is entry `place_G[g][1]` of block
    `blocks[place_G[g][0]]`. `learning_rate`, the policy's, already follows the schedule, and so do
    those of `residents`; `hand_over`: the weights go to the store after the step; `save_to`: where
    all ranks bring what a checkpoint of the step needs, and say so with `saved`."""

    stage: str
    plan: StepPlan
    blocks: tuple[ray.ObjectRef[Block], ...]
    place_G: tuple[Place, ...]
    learning_rate: float
    hand_over: bool = True
    save_to: str | None = None
    residents: ResidentRates = NO_RESIDENTS


@dataclass(frozen=True, slots=True)
class Adopt:
    """Other weights in place of those that all ranks have, as `version`, for `stage`, which they
    enter with a fresh optimizer. `number` counts up within a life of the driver; `hand_over` and
    `save_to` are as in `StepWork`."""

    number: int
    stage: str
    weights: ray.ObjectRef[Weights]
    version: WeightVersion
    save_to: str | None = None
    hand_over: bool = True

    def is_in(self, step: int) -> bool:
        """Has a checkpoint of `step` these weights, or what was learnt since? One of the very step
        does if it was made of them: others come after the checkpoint of the step that they leave
        as it is."""
        return self.version.step < step or (self.version.step == step and self.save_to is not None)


@dataclass(frozen=True, slots=True)
class Stop:
    """No more steps: ranks leave their loop, after saving to `save_to`."""

    save_to: str | None = None


@dataclass(frozen=True, slots=True)
class StartOrder:
    """What a learner group starts from, in which stage: `restore_from` is the learner's folder of a
    checkpoint, if any. `hand_over`: the engines wait for these weights; they do not where a group
    takes the place of one that has brought them."""

    step: int
    incarnation: int
    stage: str
    restore_from: str | None
    hand_over: bool = True


@dataclass(frozen=True, slots=True)
class StepReport:
    """A rank's answer: the update (weights hash and probe are rank 0's). Its first one, before any
    step, says where it is. In a colocated run one with weights says that it left its device.
    `histograms` of the step are rank 0's as well."""

    update: Update
    probe: tuple[Float32, ...]
    timings: Mapping[str, float]
    place: DevicePlace | None = None
    histograms: Mapping[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """A rank's files of a checkpoint, on disk; or what kept it from writing them."""

    files: tuple[WrittenFile, ...]
    problem: str = ""


FallKind = Literal["died", "refused", "lost", "outnumbered", "regrouped", "unplaced"]


@dataclass(frozen=True, slots=True)
class Fall:
    """The end of a learner group: `causes` are what happened to its ranks, in words; `finished` is
    the newest step that all ranks of any group had reported by then.

    Kinds: `died`, another one may get further; `refused`, another one would meet the same error;
    `lost`, what it has to step on, or its controller, is gone; `outnumbered`, nothing happened, but
    two groups want to start on one order; `regrouped`, it left as it was told to, to be followed by
    another one; `unplaced`, Ray Train found no place for it.
    """

    kind: FallKind
    causes: tuple[str, ...]
    finished: int = 0
