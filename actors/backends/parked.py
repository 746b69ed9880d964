"""Tensors whose memory is given back for a while, though others hold views of them.

The storage is emptied under the tensor and filled again, so every view stays a view: the optimizer,
the parameters' gradients and the flat buffers need not be put together anew. Owns one buffer; which
ones, and when, is the backend's decision.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Parked:
    """`buffer` must be the whole of its storage. With `keeps_content` a copy in host memory has
    its numbers meanwhile; without, they are undefined after `take_back`."""

    def __init__(self, buffer: Tensor, keeps_content: bool) -> None:
        self._buffer, self._keeps_content = buffer, keeps_content
        self._size = buffer.untyped_storage().nbytes()
        self._copy: Tensor | None = None

    @property
    def content(self) -> Tensor:
        """The numbers, wherever they are; a write to them counts."""
        return self._buffer if self._copy is None else self._copy

    @property
    def held_bytes(self) -> int:
        """On the buffer's own device."""
        return self._buffer.untyped_storage().nbytes()

    def give_back(self) -> None:
        """Frees the memory; does nothing where it is free."""
        if self.held_bytes < self._size:
            return
        if self._keeps_content:
            # Pinned where there is a device to copy from: several times faster
            pinned = self._buffer.device.type == "cuda"
            copy = torch.empty(self._buffer.shape, dtype=self._buffer.dtype, pin_memory=pinned)
            self._copy = copy.copy_(self._buffer)
        self._buffer.untyped_storage().resize_(0)

    def take_back(self) -> None:
        """Has the memory again, and the numbers if they were kept."""
        if self.held_bytes == self._size:
            return
        self._buffer.untyped_storage().resize_(self._size)
        if self._copy is not None:
            self._buffer.copy_(self._copy)
            self._copy = None
