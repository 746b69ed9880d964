"""Passes over the model that every rank makes equally often, whatever rows it has.

Where parameters are shared out, each forward and backward pass is a meeting of all ranks. Ranks
have different rows and so different numbers of micro-batches; who has fewer makes passes over a
filler row whose gradient counts zero times. Owns the counting, the filler and the order of results;
how a pass is made comes from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from manta.actors.backends.protocol import Backend, Want
from manta.actors.micro_batches import micro_batches
from manta.actors.models.policy import by_row, row_order, whole_rows
from manta.actors.rows import Row
from manta.envs.records import Float32, Int32, Likeliest

Pass: TypeAlias = Callable[[Sequence[Row], Sequence[Want], float], dict[str, Tensor]]
"""As `manta.actors.models.policy.evaluate` without the model: one forward pass, of all ranks."""

_NOTHING = Likeliest(
    np.zeros((1, 0), np.int32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32)
)
FILLER = Row(-1, np.zeros(2, np.int32), np.array([False, True]), None, None, {}, likeliest=_NOTHING)
"""The shortest row that makes a whole pass: one token, predicted from the one before it."""


def agreed(
    batches: Iterable[Sequence[Row]], group: dist.ProcessGroup, device: torch.device
) -> list[Sequence[Row] | None]:
    """This rank's micro-batches, with None after them up to the number of the rank with most; at
    least one, so that an update without any rows is a pass too."""
    own: list[Sequence[Row] | None] = list(batches)
    most = torch.tensor(max(1, len(own)), device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
    return own + [None] * (int(most) - len(own))


def filler_loss(make: Pass, wants: Sequence[Want], temperature: float) -> Tensor:
    """0, with the graph of a whole pass behind it."""
    found = make([FILLER], wants, temperature).values()
    return torch.stack([values.sum() for values in found if values.requires_grad]).sum() * 0.0


def evaluate_together(
    make: Pass,
    rows: Sequence[Row],
    wants: Sequence[Want],
    temperature: float,
    tokens_per_micro_batch: int,
    group: dist.ProcessGroup,
    device: torch.device,
) -> dict[str, Tensor]:
    """float32[T] per want over the trained tokens of `rows`, in row order, without gradients."""
    # A row without trained tokens needs no pass, and would make none.
    trained = [row for row in rows if row.num_tokens]
    parts: list[dict[str, Tensor]] = []
    evaluated: list[Row] = []
    with torch.no_grad():
        for batch in agreed(micro_batches(trained, tokens_per_micro_batch), group, device):
            found = make(batch or [FILLER], wants, temperature)
            if batch is None:
                found = {name: values[:0] for name, values in found.items()}
            if batch is not None or not parts:
                parts.append(found)
            evaluated.extend(batch or ())
    order_T = row_order(evaluated, trained).to(device)
    return {name: torch.cat([part[name] for part in parts])[order_T] for name in parts[0]}


def probe_together(backend: Backend, rows: Sequence[Int32]) -> tuple[Float32, ...]:
    """As `manta.actors.models.policy.token_logprobs`, by a backend that needs every rank; those
    without rows get nothing."""
    whole = whole_rows(rows)
    return tuple(by_row(whole, backend.evaluate(whole, ("logprob",), 1.0)["logprob"]))
