"""A histogram as plain numbers, to be looked at. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BINS = 32


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` values lie between `edges[i]` and `edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]


def histogram_of(values: npt.NDArray[np.floating]) -> Histogram | None:
    """Of the finite ones of `values`, in 32 bins of equal width; None where there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    counts, edges = np.histogram(finite, _BINS)
    return Histogram(tuple(edges.tolist()), tuple(counts.astype(float).tolist()))
