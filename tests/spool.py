"""Reading the files of `tests.unit.actors.engines.spool_transfer`, without vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_spool(
    file: Path, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]
) -> list[tuple[str, Tensor]]:
    octets = torch.from_numpy(np.fromfile(file, np.uint8))
    tensors = []
    for name, dtype, shape in zip(names, dtypes, shapes, strict=True):
        kind = getattr(torch, dtype)
        size = int(np.prod(shape)) * kind.itemsize
        tensors.append((name, octets[:size].clone().view(kind).reshape(shape)))
        octets = octets[size:]
    return tensors
