"""What a reference says of trajectories, as Arrow columns and back; null where it says nothing.

Part of `manta.envs.trajectory_columns`. A row of T trained tokens with k likely ones each has T * k
ids, T * (k + 1) log-probs and T weights, token after token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa

from manta.envs.number_lists import flat, number_lists, read_lists
from manta.envs.records import (
    Float32,
    Int32,
    Likeliest,
    ReferenceStatistics,
    ScoredGroup,
    Trajectory,
)

REFERENCE_FIELDS = [
    pa.field("reference_logprobs", pa.list_(pa.float32())),
    pa.field("reference_likeliest", pa.list_(pa.int32())),
    pa.field("reference_likeliest_logprobs", pa.list_(pa.float32())),
    pa.field("reference_likeliest_weights", pa.list_(pa.float32())),
]
T = TypeVar("T")
_LOGPROBS, _IDS, _LIKELY, _WEIGHTS = (field.name for field in REFERENCE_FIELDS)


def reference_arrays(groups: Sequence[ScoredGroup]) -> dict[str, pa.Array]:
    """The columns over all rows of `groups`. What is likely is said of samples alone."""
    logprobs = [row for group in groups for row in group.row_references]
    likeliest: list[Likeliest | None] = []
    for group in groups:
        likeliest += _over_rows(group, () if group.reference is None else group.reference.likeliest)
    ids, likely, weights = (
        [None if row is None else row[i].ravel() for row in likeliest] for i in range(3)
    )
    return {
        _LOGPROBS: number_lists(logprobs, np.float32, _LOGPROBS),
        _IDS: number_lists(ids, np.int32, _IDS),
        _LIKELY: number_lists(likely, np.float32, _LIKELY),
        _WEIGHTS: number_lists(weights, np.float32, _WEIGHTS),
    }


def read_reference(
    version: str, table: pa.Table, trajectories: Sequence[Trajectory]
) -> ReferenceStatistics:
    """The statistics of `trajectories`, the first rows of `table`. Files that were written before
    there were likely tokens have no columns of them."""
    count = len(trajectories)
    logprobs = cast("list[Float32]", read_lists(flat(table, _LOGPROBS)))[:count]
    if _IDS not in table.column_names or not table.column(_IDS)[0].is_valid:
        return ReferenceStatistics(version, tuple(logprobs))
    ids = cast("list[Int32]", read_lists(flat(table, _IDS)))
    likely = cast("list[Float32]", read_lists(flat(table, _LIKELY)))
    weights = cast("list[Float32]", read_lists(flat(table, _WEIGHTS)))
    widths = [
        len(i) // len(w) for i, w in zip(ids, weights, strict=True) if w is not None and len(w)
    ]
    k = max(widths, default=0)  # a trajectory without trained tokens does not tell
    likeliest = (
        Likeliest(ids[i].reshape(len(w), k), likely[i].reshape(len(w), k + 1), w)
        for i, w in enumerate(weights[:count])
    )
    return ReferenceStatistics(version, tuple(logprobs), tuple(likeliest))


def read_beside(table: pa.Table) -> Float32 | None:
    """What the reference says of a group's companion, the last row of `table`."""
    return cast("list[Float32 | None]", read_lists(flat(table, _LOGPROBS)))[-1]


def _over_rows(group: ScoredGroup, known: Sequence[T]) -> list[T | None]:
    """One of `known` for each of the group's rows, as far as there are any."""
    return [*known, *[None] * (len(group.rows) - len(known))]
