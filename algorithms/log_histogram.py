"""Histograms of numbers of any size and both signs, which add up over micro-batches and ranks.

Bins are evenly spaced on a logarithmic scale, 64 a decade from 1e-9 to 1e3: a quantile lies within
2% of the true one, and is 0 below 1e-9. Owns bins and what is read off them; who counts what is
`manta.algorithms.mismatch`'s and `manta.algorithms.step_tally`'s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_DECADES, _PER_DECADE = (-9, 3), 64
_DRAWN = 32
"""Bins of a histogram that is looked at."""


def _edges() -> Tensor:
    """Ascending borders, of negative numbers first."""
    num = (_DECADES[1] - _DECADES[0]) * _PER_DECADE + 1
    positive = torch.logspace(*_DECADES, num, dtype=torch.float64)
    return torch.cat([-positive.flip(0), positive])


def _middles(edges: Tensor) -> Tensor:
    """Of each bin, on the logarithmic scale; the end of what has none beyond, 0 around 0."""
    outer = torch.cat([edges[:1], edges, edges[-1:]])
    middles = (outer[:-1] * outer[1:]).abs().sqrt() * outer[:-1].sign()
    middles[len(edges) // 2] = 0.0
    return middles


_EDGES = _edges()
_MIDDLES = _middles(_EDGES)
BINS = len(_MIDDLES)
"""One beyond either end, one around 0."""


def counts(values_T: Tensor) -> Tensor:
    """How many of `values_T` fall into each bin, int64[BINS]."""
    return torch.bincount(torch.bucketize(values_T.double(), _EDGES), minlength=BINS)


def quantile(histogram: Tensor, share: float) -> float:
    """The middle (on the logarithmic scale) of the bin that the quantile `share` falls into, of at
    least one value; at most 1e3 in size."""
    rank = max(1.0, math.ceil(share * float(histogram.sum())))
    return float(_MIDDLES[int(torch.searchsorted(histogram.cumsum(0), rank))])


def drawn(histogram: Tensor) -> tuple[list[float], list[float]]:
    """(33 ascending edges, 32 counts) in bins of equal width, of at least one value."""
    filled = histogram.nonzero().flatten()
    middles, weights = _MIDDLES[filled], histogram[filled].double()
    low, high = float(middles[0]), float(middles[-1])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, _DRAWN + 1, dtype=torch.float64)
    places = ((middles - low) / (high - low) * _DRAWN).long().clamp(0, _DRAWN - 1)
    return edges.tolist(), torch.bincount(places, weights, minlength=_DRAWN).tolist()
