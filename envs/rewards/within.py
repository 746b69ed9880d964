"""Rewards within a trajectory: what components say of turns, steps and tokens, weighed into one
column of per-token rewards.

Owns where a span is paid and what must hold for the numbers. Which components are weighed the run
file says (`reward.within`); what becomes of tokens that do not train is `manta.actors.rows`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from manta.envs.failures import RewardFailed
from manta.envs.records import TOKEN_REWARDS, Detail, Float32, Span, Trajectory

LARGEST = float(np.finfo(np.float32).max)
"""Rewards are float32 from here on: what is larger would be infinite there."""


class Within(NamedTuple):
    """Of a trajectory, as fields of its `Score`."""

    spans: tuple[Span, ...]
    columns: Mapping[str, Float32]


def within(
    trajectory: Trajectory, details: Mapping[str, Detail], weights: Mapping[str, float]
) -> Within:
    """The `details` of a trajectory's components by name, and their weighted sum where any has a
    weight. Columns that are weighed are in the sum alone.

    Raises RewardFailed naming component, task and sample where a number could not train.
    """
    spans = [
        replace(span, name=f"{name}/{span.name}")
        for name, detail in details.items()
        for span in detail.spans
    ]
    columns = {
        name: detail.column
        for name, detail in details.items()
        if detail.column is not None and name not in weights
    }
    if weights:
        columns[TOKEN_REWARDS] = _token_rewards(trajectory, details, weights)
    return Within(tuple(spans), columns)


def check_detail(name: str, detail: Detail, trajectory: Trajectory) -> None:
    """Raises RewardFailed where what the component `name` says of a part could not train."""
    length = len(trajectory.token_ids)
    for span in detail.spans:
        what = f"reward {name!r} gave the span {span.name!r} of tokens {span.start}:{span.end}"
        if not 0 <= span.start < span.end <= length:
            raise RewardFailed(
                f"{what}, {whose(trajectory)}: the trajectory has {length} tokens, and a span one "
                "of them or more"
            )
        if not abs(span.value) <= LARGEST:
            raise RewardFailed(
                f"{what} the value {span.value}, {whose(trajectory)}: it must be a finite number "
                "that a float32 holds; leave out a span that has none"
            )
    column = detail.column
    if column is None:
        return
    if column.shape != (length,) or column.dtype != np.float32:
        raise RewardFailed(
            f"reward {name!r} gave a column {column.dtype}{list(column.shape)}, "
            f"{whose(trajectory)}: it must be float32[{length}], one number a token"
        )
    (broken,) = np.nonzero(~np.isfinite(column))
    if len(broken):
        raise RewardFailed(
            f"reward {name!r} gave {column[broken[0]]} for token {broken[0]}, {whose(trajectory)}: "
            "every number must be finite; 0 is none"
        )


def whose(trajectory: Trajectory) -> str:
    return f"task {trajectory.task_id}, sample {trajectory.sample}"


def _token_rewards(
    trajectory: Trajectory, details: Mapping[str, Detail], weights: Mapping[str, float]
) -> Float32:
    """float32[L]: a span's value is paid at its last token, a column's numbers at their own."""
    total = np.zeros(len(trajectory.token_ids), np.float64)
    for name, weight in weights.items():
        if name in details:
            detail = details[name]
            _pay(total, detail.spans, weight)
            if detail.column is not None:
                total += weight * detail.column.astype(np.float64)
    if not (np.abs(total) <= LARGEST).all():
        raise RewardFailed(
            f"the rewards of {list(weights)} within {whose(trajectory)}, come to more than a "
            "float32 holds: lower their weights in reward.within"
        )
    return total.astype(np.float32)


def _pay(
    total: np.ndarray[tuple[int], np.dtype[np.float64]], spans: Sequence[Span], weight: float
) -> None:
    for span in spans:
        total[span.end - 1] += weight * span.value
