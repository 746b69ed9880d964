"""Keys and values of the rows under way, in place: one slot a row, dense from slot 0.

Owns the memory and how it grows. Which row sits in which slot, and when it leaves, is decided by
`manta.actors.engines.decode_batch`. Shapes: S slots, H key/value heads, C capacity in tokens, D
head width, R rows of a prefill, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_FIRST_CAPACITY = 64


class KeyValueSlots(Cache):  # type: ignore[misc]
    """Per layer keys and values [S, H, C, D], handed to a model as its `past_key_values`.

    A forward pass writes one token per row at the place that `aim` named and attends over the
    front of every slot; memory past a row's length holds old finite numbers and must be masked.
    Slots and capacity grow by doubling, up to `max_slots` and `context`.
    """

    def __init__(self, max_slots: int, context: int) -> None:
        super().__init__(layers=[])
        self.max_slots = max_slots
        self.context = context
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._place: tuple[Tensor, slice, Tensor] | None = None
        self._num_rows = 0
        self._length = 0

    def clear(self) -> None:
        """Gives the memory back."""
        self.keys, self.values = [], []

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def reserve(self, num_rows: int, length: int) -> None:
        """Makes room for `num_rows` rows of `length` tokens once the first prefill is stored."""
        if not self.keys:
            return
        slots, _, capacity, _ = self.keys[0].shape
        if num_rows <= slots and length <= capacity:
            return
        self.keys = [self._grown(old, num_rows, length) for old in self.keys]
        self.values = [self._grown(old, num_rows, length) for old in self.values]

    def _grown(self, old: Tensor, num_rows: int, length: int) -> Tensor:
        slots, heads, capacity, width = old.shape
        new = old.new_zeros(
            _doubled(slots, num_rows, self.max_slots),
            heads,
            _doubled(capacity, length, self.context),
            width,
        )
        new[:slots, :, :capacity] = old
        return new

    def store(
        self, start: int, keys: Sequence[Tensor], values: Sequence[Tensor], source_R: Tensor
    ) -> None:
        """Fills slots `start`.. with the prefilled rows `source_R` of `keys`, `values` [P, H, L, D]
        per layer."""
        end, length = start + len(source_R), keys[0].shape[2]
        if not self.keys:
            # Zeros, since masked places are still multiplied: what was never written must be finite
            slots = _doubled(1, end, self.max_slots)
            capacity = _doubled(_FIRST_CAPACITY, length, self.context)
            for own, given in ((self.keys, keys), (self.values, values)):
                own.extend(t.new_zeros(slots, t.shape[1], capacity, t.shape[3]) for t in given)
        self.reserve(end, length)
        for own, given in ((self.keys, keys), (self.values, values)):
            for slot, tensor in zip(own, given, strict=True):
                slot[start:end, :, :length] = tensor[source_R]

    def move(self, sources: Sequence[int], holes: Sequence[int], length: int) -> None:
        """Copies the first `length` tokens of the slots `sources` into the slots `holes`."""
        source_M, hole_M = torch.tensor(sources), torch.tensor(holes)
        for slot in (*self.keys, *self.values):
            slot[hole_M, :, :length] = slot[source_M, :, :length]

    def aim(self, positions_B: Tensor, length: int) -> None:
        """The next forward pass writes row b at `positions_B[b]` and reads `length` tokens."""
        self._num_rows, self._length = len(positions_B), length
        rows_B = torch.arange(self._num_rows, device=positions_B.device)
        self._place = (rows_B, slice(None), positions_B)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: stores one token per row, returns [B, H, L, D] views."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self._place] = key_states[:, :, 0]
        values[self._place] = value_states[:, :, 0]
        rows, length = self._num_rows, self._length
        return keys[:rows, :, :length], values[:rows, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._length, 0


def _doubled(size: int, wanted: int, most: int) -> int:
    while size < wanted:
        size *= 2
    return min(size, most)
