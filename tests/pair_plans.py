"""Plans whose rows are compared or labelled, from groups with rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from manta.algorithms.group_stage import group_stage
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import COMPANION, ScoredGroup
from manta.envs.step_records import StepPlan
from tiny import plan_of


def pair_plan(
    settings: AlgorithmSettings, groups: Sequence[ScoredGroup], margin: float = 0.0
) -> StepPlan:
    """As the driver makes it; every pair has the `margin`."""
    plan = plan_of(groups)
    rewards_N = torch.from_numpy(plan.coefficients["advantage"])
    is_companion_N = torch.from_numpy(plan.sample_N == COMPANION)
    group_N = torch.from_numpy(plan.group_N)
    stage = group_stage(settings, rewards_N, group_N, is_companion_N=is_companion_N)
    columns = {name: column.numpy() for name, column in stage.coefficients.items()}
    if settings.unit != "row":
        plan = replace(plan, unit_N=plan.group_N)
    if stage.pairs is None:
        return replace(plan, coefficients=columns)
    pair_P2 = torch.stack(stage.pairs, dim=1).numpy().astype(np.int32)
    return replace(
        plan,
        coefficients=columns,
        pair_P2=pair_P2,
        margin_P=np.full(len(pair_P2), margin, np.float32),
    )
