"""Weights that arrive in a vLLM worker process through vLLM's own weight transfer.

Owns the hash of what arrives, taken where the receiving end hands it to the model, and the form in
which handles of lent GPU memory pass from the engine's process into the worker's: vLLM would pickle
them, here they are plain values. What moves the bytes is vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from manta.actors.weight_stream import StreamHash
from manta.actors.weight_tensors import hash_into

if TYPE_CHECKING:
    from collections.abc import Callable

TransferInfo: TypeAlias = Mapping[str, object]
"""What vLLM's two ends tell each other; its shape is vLLM's."""

_HANDLES = "ipc_handles"
_TENSOR, _STORAGE = torch.Tensor, torch.storage.TypedStorage
"""The classes in every such handle: what `torch.multiprocessing.reductions.rebuild_cuda_tensor`
takes first and fifth."""


class Arrivals:
    """Stands before `model.load_weights`, until `close`: every tensor that is loaded is hashed."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._load: Callable[[Iterable[tuple[str, Tensor]]], object] = model.load_weights  # type: ignore[assignment]
        self._hash = StreamHash()
        model.load_weights = self._hash_and_load  # type: ignore[assignment]

    def close(self) -> str:
        """The hash of all that was loaded; the model is as it was before."""
        del self._model.load_weights
        return self._hash.close()

    def _hash_and_load(self, weights: Iterable[tuple[str, Tensor]]) -> object:
        arrived = list(weights)
        hash_into(self._hash, arrived)
        return self._load(arrived)


def plain(info: TransferInfo) -> TransferInfo:
    """`info` with its handles, if any, as lists of plain values, for vLLM's own wire.

    Raises TypeError for handles of something else than plain tensors in GPU memory.
    """
    handles = info.get(_HANDLES)
    if handles is None:
        return info
    assert isinstance(handles, Mapping)
    return {**info, _HANDLES: {gpu: _to_plain(each) for gpu, each in handles.items()}}


def from_plain(info: TransferInfo) -> TransferInfo:
    """What `plain` was given."""
    handles = info.get(_HANDLES)
    if handles is None:
        return info
    assert isinstance(handles, Mapping)
    return {**info, _HANDLES: {gpu: _from_plain(each) for gpu, each in handles.items()}}


def _to_plain(handle: Sequence[object]) -> list[object]:
    tensor, size, stride, offset, storage, dtype, *rest = handle
    if tensor is not _TENSOR or storage is not _STORAGE:
        raise TypeError(f"a handle of {tensor} in {storage}: vLLM lends plain tensors")
    assert isinstance(size, Sequence)
    assert isinstance(stride, Sequence)
    return [list(size), list(stride), offset, str(dtype).removeprefix("torch."), *rest]


def _from_plain(values: Sequence[object]) -> tuple[object, ...]:
    size, stride, offset, dtype, *rest = values
    assert isinstance(size, Sequence)
    assert isinstance(stride, Sequence)
    number_type = getattr(torch, str(dtype))
    return (_TENSOR, torch.Size(size), tuple(stride), offset, _STORAGE, number_type, *rest)
