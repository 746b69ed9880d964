"""How rows lie in a model's input: side by side, padded to one width, or one behind the other.

Either way a row is computed up to the last token that predicts a trained one. In one sequence, what
several rows begin with before their first trained token (the samples of one prompt) is computed
once. Owns indices only; what attends to what is `manta.actors.models.packed_attention`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from manta.actors.models.documents import Document, Documents
from manta.actors.models.products import MANY_ROWS, missing_rows
from manta.actors.rows import Row

_WORTH_SHARING = 0.05
"""Share of the tokens that sharing must save: two pieces cost attention more than one."""


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
    tokens_BL = np.zeros((len(rows), width), np.int32)
    for i, (row, length) in enumerate(zip(rows, needed, strict=True)):
        tokens_BL[i, :length] = row.token_ids[:length]
    starts = np.arange(len(rows), dtype=np.int64) * width
    return _layout(rows, tokens_BL, _predictors(rows, starts), None)


def in_one_sequence(rows: Sequence[Row]) -> Layout:
    """Rows without padding: [1, N]. What several rows begin with comes first, each beginning once,
    then what is left of every row; equally long pieces are neighbours, and tokens that nothing
    looks at fill up a long sequence. If all rows are equally long and share nothing, or there is
    only one, nothing is to be gained: side by side."""
    needed = [_needed(row) for row in rows]
    beginnings = [row.beginning if row.num_tokens else None for row in rows]
    shared = _shared(beginnings, sum(needed))
    if not shared and len({length for length in needed if length}) < 2:
        return side_by_side(rows)
    pieces = [np.frombuffer(beginning, np.int32) for beginning in shared]
    documents = [Document(len(piece)) for piece in pieces]
    place = {beginning: i for i, beginning in enumerate(shared)}
    after = [None if beginning is None else place.get(beginning) for beginning in beginnings]
    skipped = [0 if i is None else len(pieces[i]) for i in after]
    starts, end = np.zeros(len(rows), np.int64), sum(map(len, pieces))
    for i in sorted(range(len(rows)), key=lambda i: (skipped[i] - needed[i], skipped[i])):
        starts[i] = end - skipped[i]
        if needed[i] > skipped[i]:
            pieces.append(rows[i].token_ids[skipped[i] : needed[i]])
            documents.append(Document(len(pieces[-1]), after[i]))
            end += len(pieces[-1])
    # So that products of the states have sizes that came before, and need no copies for that
    filler = missing_rows(end) if end >= MANY_ROWS else 0
    pieces.append(np.zeros(filler, np.int32))
    lying = Documents([*documents, *[Document(1)] * filler])
    predictors = _predictors(rows, starts)
    for positions, of_beginning in zip(predictors, after, strict=True):
        if of_beginning is not None:
            # The first trained token is predicted by the end of what comes before it
            positions[0] = lying.starts[of_beginning] + documents[of_beginning].length - 1
    return _layout(rows, np.concatenate(pieces)[None], predictors, lying)


def _shared(beginnings: Sequence[bytes | None], num_tokens: int) -> list[bytes]:
    """Those that stand several times in `beginnings`, the shortest first; none where that saves too
    little of `num_tokens`. None is nothing to share."""
    times = Counter(beginning for beginning in beginnings if beginning is not None)
    found = sorted((one for one, count in times.items() if count > 1), key=lambda b: (len(b), b))
    saved = sum((times[beginning] - 1) * len(beginning) // 4 for beginning in found)
    return found if saved > _WORTH_SHARING * num_tokens else []


def _needed(row: Row) -> int:
    """Tokens of `row` that a trained token depends on."""
    (places,) = row.loss_mask.nonzero()
    return int(places[-1]) if len(places) else 0


def _predictors(rows: Sequence[Row], starts: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The positions that predict each row's trained tokens, if row i lies from `starts[i]` on."""
    return [start + row.loss_mask.nonzero()[0] - 1 for start, row in zip(starts, rows, strict=True)]


def _layout(
    rows: Sequence[Row],
    tokens: npt.NDArray[np.int32],
    predictors: Sequence[npt.NDArray[np.int64]],
    documents: Documents | None,
) -> Layout:
    nothing = np.zeros(0, np.int64)
    targets = [row.token_ids[row.loss_mask] for row in rows]
    return Layout(
        torch.from_numpy(tokens.astype(np.int64)),
        torch.from_numpy(np.concatenate([nothing, *predictors])),
        torch.from_numpy(np.concatenate([nothing, *targets])),
        documents,
    )
