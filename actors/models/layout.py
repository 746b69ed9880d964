"""How rows lie in a model's input: side by side, padded to one width, or one behind the other.

Either way a row is computed up to the last token that predicts a trained one. Owns indices only;
what attends to what is `manta.actors.models.packed_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manta.actors.models.packed_attention import Documents
from manta.actors.rows import Row


@dataclass(frozen=True, slots=True)
class Layout:
    """`tokens` int64[B, L]; for each trained token, in row order, the flat position `positions_T`
    that predicts it and its id `targets_T`, int64[T]. With `documents` B is 1 and they share the
    sequence; without, each row of `tokens` is a document, with anything behind its end."""

    tokens: Tensor
    positions_T: Tensor
    targets_T: Tensor
    documents: Documents | None = None


def side_by_side(rows: Sequence[Row]) -> Layout:
    """Rows [B, L], padded on the right: a causal model lets no token see what comes after it."""
    needed = [_needed(row) for row in rows]
    width = max(needed, default=0)
    tokens_BL = np.zeros((len(rows), width), np.int64)
    for i, (row, length) in enumerate(zip(rows, needed, strict=True)):
        tokens_BL[i, :length] = row.token_ids[:length]
    return _layout(rows, tokens_BL, np.arange(len(rows)) * width, None)


def in_one_sequence(rows: Sequence[Row]) -> Layout:
    """Rows without padding: [1, N], the longest first, so that equally long ones are neighbours.
    If all are equally long, or there is only one, nothing is to be gained: side by side."""
    needed = [_needed(row) for row in rows]
    if len({length for length in needed if length}) < 2:
        return side_by_side(rows)
    order = sorted(range(len(rows)), key=lambda i: -needed[i])
    starts = np.zeros(len(rows), np.int64)
    starts[order] = np.cumsum([0, *(needed[i] for i in order)])[:-1]
    tokens_1N = np.concatenate([rows[i].token_ids[: needed[i]] for i in order])[None]
    lengths = tuple(needed[i] for i in order if needed[i])
    return _layout(rows, tokens_1N.astype(np.int64), starts, Documents(lengths))


def _needed(row: Row) -> int:
    """Tokens of `row` that a trained token depends on."""
    (places,) = row.loss_mask.nonzero()
    return int(places[-1]) if len(places) else 0


def _layout(
    rows: Sequence[Row],
    tokens: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    starts: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    documents: Documents | None,
) -> Layout:
    nothing = np.zeros(0, np.int64)
    places = [row.loss_mask.nonzero()[0] for row in rows]
    positions = [start + of_row - 1 for start, of_row in zip(starts, places, strict=True)]
    targets = [row.token_ids[of_row] for row, of_row in zip(rows, places, strict=True)]
    return Layout(
        torch.from_numpy(tokens),
        torch.from_numpy(np.concatenate([nothing, *positions])),
        torch.from_numpy(np.concatenate([nothing, *targets])),
        documents,
    )
