"""The records of a step: what the driver has the ranks learn, and what came of it.

Shapes: N rows (trajectories) of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from manta.envs.records import Float32, GroupId, Int32, WeightVersion


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything that decides a step but its tensors: rows, units and their coefficients.

    Row i is sample `sample_N[i]` (`COMPANION`: the group's companion, its last row) of group
    `group_N[i]` (an index into `groups`); rows that share
    `unit_N` belong together: a loss may couple them, and ranks do not part them. `coefficients` are
    named float32[N] columns such as `advantage`, `weight`, `keep`. `lengths_N` counts all tokens,
    `num_tokens_N` the trained ones. Tokens of weights before step `oldest_version` do not train
    (None: all do). No tensors of tokens, and no shards: every rank computes its own share.

    `pair_P2` int32[P, 2] are pairs of rows, the preferred one first, for a loss that compares them;
    a row stands in the plan once, in however many pairs it is. `margin_P` float32[P].
    """

    step: int
    groups: tuple[GroupId, ...]
    group_N: Int32
    sample_N: Int32
    unit_N: Int32
    coefficients: Mapping[str, Float32]
    lengths_N: Int32
    num_tokens_N: Int32
    oldest_version: int | None = None
    pair_P2: Int32 = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    margin_P: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class Update:
    """What a learner group reports of one step."""

    version: WeightVersion
    metrics: Mapping[str, float]
    weights_hash: str
