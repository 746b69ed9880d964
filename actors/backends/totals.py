"""What the micro-batches of one update add up to, over all ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from manta.actors.collectives import gather_texts
from manta.algorithms.tokens import LossTerms


class Totals:
    """Loss and `sums` added, `maxima` combined by max, in float64; a NaN stays a NaN."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {"loss": 0.0}
        self._maxima: dict[str, float] = {}

    def add(self, terms: LossTerms) -> None:
        self._take({"loss": terms.loss.item(), **_floats(terms.sums)}, _floats(terms.maxima))

    def combine(self, group: dist.ProcessGroup) -> None:
        """Every rank's totals, taken in rank order. A rank without rows does not know the names,
        which is why names travel with the numbers."""
        gathered = gather_texts(json.dumps([self._sums, self._maxima]), group)
        self._sums, self._maxima = {"loss": 0.0}, {}
        for sums, maxima in map(json.loads, gathered):
            self._take(sums, maxima)

    def values(self) -> dict[str, float]:
        return {**self._sums, **self._maxima}

    def _take(self, sums: Mapping[str, float], maxima: Mapping[str, float]) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        for name, value in maxima.items():
            self._maxima[name] = float(np.maximum(self._maxima.get(name, value), value))


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    if not tensors:
        return {}
    values = torch.stack([tensor.detach().double() for tensor in tensors.values()]).tolist()
    return dict(zip(tensors, values, strict=True))
