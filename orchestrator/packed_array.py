"""Arrays as text, for the JSON of a checkpoint: little-endian bytes, compressed, in base64."""

from __future__ import annotations

import base64
import zlib
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.generic)


def packed(array_N: npt.NDArray[Number]) -> str:
    """A flat array of numbers as text; `unpacked` must be told its type."""
    data = array_N.astype(array_N.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(data)).decode()


def unpacked(text: str, kind: type[Number]) -> npt.NDArray[Number]:
    """What `packed` made text of. Raises ValueError where it is something else."""
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(f"not an array: {error}") from error
    return np.frombuffer(data, np.dtype(kind).newbyteorder("<")).astype(kind)
