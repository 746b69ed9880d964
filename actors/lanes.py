"""A lane: how the groups of one stage and purpose are made. Plain values, the same on all workers.

Training, evaluation and rollout-only generation are lanes over the same workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from manta.envs.hindsight import Hindsight
from manta.envs.protocols import Options, Split
from manta.envs.records import CompanionKind, GroupId, GroupSummary


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """A formula over named components; each is (registry name or `module:attribute`, options).
    `scorers` are those that components call; `gold` is the component that the formula's value is
    held against; `within` are weights of what components say of parts."""

    formula: str
    components: Mapping[str, tuple[str, Options]]
    deadline_seconds: float
    scorers: tuple[str, ...] = ()
    gold: str | None = None
    within: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lane:
    """`samples_from`: an engine (`policy`), gold answers (`given`) or a folder (`written`).

    `redundant_samples` more than `samples_per_prompt` are begun, and the first to end are taken.
    `purpose` seeds sampling apart from other lanes; `context` bounds prompt plus answer in tokens.
    With `ignore_eos` samples end at their budget only. `compares`: all given answers of a task make
    its group, and not the gold one alone. `is_annotated`: what was written is scored again, by the
    lane's rewards and the reference, where it has them. `reference_top_k`: of how many tokens the
    reference says how likely they are, beside the sampled one. `companion` is made beside the
    samples, a written one of those in the folder `companions_from`. `tag` is put before every
    prompt that is rendered; `hindsight` is what becomes of groups once they have their rewards
    (None: nothing).
    """

    name: str
    env: str
    env_options: Options
    split: Split
    samples_from: Literal["policy", "given", "written"]
    samples_per_prompt: int
    seed: int
    context: int
    max_new_tokens: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    ignore_eos: bool = False
    reward: RewardSpec | None = None
    uses_reference: bool = False
    reference_top_k: int = 0
    trajectories: str | None = None
    redundant_samples: int = 0
    compares: bool = False
    is_annotated: bool = False
    companion: CompanionKind = "none"
    companions_from: str | None = None
    tag: str = ""
    hindsight: Hindsight | None = None

    @property
    def priority(self) -> int:
        """Before engines, the lower one goes first: a run stands still while it evaluates."""
        return 0 if self.split == "eval" else 1

    @property
    def purpose(self) -> str:
        return f"{self.name}/{self.split}"


@dataclass(frozen=True, slots=True)
class Admission:
    """A place in the order and the task that stands there; `index` is its place in the source.
    Lower ranks go to engines first; without `order` the place is the rank. `cap` bounds the new
    tokens of each sample, below the lane's own bound."""

    id: GroupId
    index: int
    order: tuple[int, ...] = ()
    cap: int | None = None

    @property
    def rank(self) -> tuple[int, ...]:
        return self.order or self.id[:2]


@dataclass(frozen=True, slots=True)
class Broken:
    """The world broke while this group was made: it may be tried again. `is_lost`: a worker was
    gone, which the group itself is hardly to blame for."""

    id: GroupId
    reason: str
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """What the driver learns of a block: one entry per admission, in order. The block itself
    holds the groups that were made, in the same order."""

    groups: tuple[GroupSummary | Broken, ...] = field(default_factory=tuple)
