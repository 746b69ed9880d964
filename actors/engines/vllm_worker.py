"""Weights inside vLLM's worker processes: hashed there, then loaded.

vLLM mixes this class into its worker (`worker_extension_cls`), so every process that holds a part
of the model has these methods. They are handed a file by the engine, which wrote it for them alone;
numbers are viewed in it, nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from manta.actors.engines.vllm_weights import Index
from manta.actors.weights import TensorSpec, content_hash

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class WeightsInWorker:
    """Methods are called by name, so they start with `manta_`: vLLM refuses one that it has too.
    `reload_weights` and `model_runner` are the worker's own."""

    reload_weights: Callable[..., None]
    model_runner: GPUModelRunner

    def manta_processes(self) -> tuple[int, int]:
        """This one and its parent, the engine core."""
        return os.getpid(), os.getppid()

    def manta_hash(self, path: str, index: Index) -> str:
        """SHA-256 over the bytes in the file, as this process reads them."""
        return content_hash(_specs(index), _bytes(path))

    def manta_load(self, path: str, index: Index) -> None:
        """Takes the tensors of the file over, in the layouts that vLLM's kernels want."""
        self.reload_weights(weights_iterator=_tensors(_specs(index), _bytes(path)))
        for module in self.model_runner.get_model().modules():
            # A head tied to the embeddings is none of the layers that vLLM reloads, and on a CPU it
            # computes with a packed copy of their old values.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


def _specs(index: Index) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, dtype, tuple(shape), start, end)
        for name, dtype, shape, start, end in index
    )


def _bytes(path: str) -> npt.NDArray[np.uint8]:
    return np.memmap(path, np.uint8, mode="r")


def _tensors(
    specs: Iterable[TensorSpec], data: npt.NDArray[np.uint8]
) -> Iterator[tuple[str, Tensor]]:
    """One copy at a time: all of them at once would be the model a second time."""
    for spec in specs:
        flat = torch.from_numpy(np.array(data[spec.start : spec.end]))
        yield spec.name, flat.view(getattr(torch, spec.dtype)).reshape(spec.shape)
