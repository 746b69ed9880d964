"""What algorithms read of a step's plan, as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from manta.actors.rows import Row
from manta.actors.sharding import IntArray
from manta.algorithms.aggregate import Denominators, denominators, row_weight
from manta.algorithms.turns import Places
from manta.envs.records import COMPANION
from manta.envs.step_records import StepPlan


def denominators_of(plan: StepPlan, rows: IntArray) -> Denominators:
    """Of an update that trains `rows`, places in the plan, on all ranks."""
    columns = {name: torch.from_numpy(plan.coefficients[name][rows]) for name in plan.coefficients}
    is_given = plan.sample_N[rows] == COMPANION
    return denominators(
        torch.from_numpy(plan.num_tokens_N[rows]),
        row_weight(columns),
        torch.from_numpy(is_given) if is_given.any() else None,
    )


def places_of(plan: StepPlan, rows: Sequence[Row]) -> Places:
    """Where a rank's `rows` stand among all of the step's."""
    return Places(
        torch.tensor([row.index for row in rows], dtype=torch.int64),
        torch.from_numpy(plan.group_N.astype(np.int64)),
    )
