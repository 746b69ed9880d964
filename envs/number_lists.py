"""Arrays of numbers as Arrow lists, one list a row, and back: no Python runs per number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_Array = npt.NDArray[Any]


def offsets_of(lengths: Iterable[int], count: int) -> npt.NDArray[np.int32]:
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(np.fromiter(lengths, np.int32, count), out=offsets[1:])
    return offsets


def number_lists(
    rows: Sequence[_Array | None], dtype: type[np.generic], column: str
) -> pa.ListArray:
    """One list per row; None becomes null."""
    present = [row for row in rows if row is not None]
    wrong = {row.dtype for row in present} - {np.dtype(dtype)}
    if wrong:
        found = ", ".join(sorted(map(str, wrong)))
        raise ValueError(f"{column} must be {np.dtype(dtype)} arrays, found {found}")
    values = np.concatenate(present) if present else np.empty(0, dtype)
    offsets = offsets_of((0 if row is None else len(row) for row in rows), len(rows))
    mask = None
    if len(present) < len(rows):
        mask = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)


def flat(table: pa.Table, name: str) -> pa.Array:
    """The column as one array without a slice offset."""
    return pa.concat_arrays(table.column(name).chunks)


def read_lists(column: pa.ListArray) -> list[_Array | None]:
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [
        values[start:end].copy() if is_valid else None
        for start, end, is_valid in zip(offsets[:-1], offsets[1:], valid, strict=True)
    ]
