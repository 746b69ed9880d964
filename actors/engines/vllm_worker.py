"""What Manta does inside vLLM's worker processes: hash weights, load them, draw tokens, sleep.

vLLM mixes this class into its worker (`worker_extension_cls`), so every process that holds a part
of the model has these methods. Weights come in a file that the engine wrote for them alone; numbers
are viewed in it, nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from manta.actors.engines.draws import seed_tensor, uniform
from manta.actors.engines.sampler import draw
from manta.actors.engines.vllm_weights import DRAWN, Index
from manta.actors.weights import TensorSpec, content_hash

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class WorkerExtension:
    """Methods are called by name, so they start with `manta_`: vLLM refuses one that it has too.
    What stands here without a value is the worker's own."""

    reload_weights: Callable[..., None]
    model_runner: GPUModelRunner
    use_v2_model_runner: bool
    device: torch.device

    def manta_processes(self) -> tuple[int, int]:
        """This one and its parent, the engine core."""
        return os.getpid(), os.getppid()

    def manta_draw_by_counter(self) -> None:
        """From now on a token follows from its sample's seed and place, as in the embedded engine,
        and not from how often a generator was asked. On a CPU only: there vLLM steps one batch
        after the other, so that a row's tokens are all known when its next one is drawn. Its second
        model runner, the one for GPUs with Triton, draws by seed and place itself."""
        if self.use_v2_model_runner:
            return
        runner = self.model_runner

        def forward(
            logits_BV: Tensor, generators: object, top_k_B: Tensor | None, top_p_B: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            kept_BV = apply_top_k_top_p(logits_BV, top_k_B, top_p_B)
            logprobs_BV = kept_BV.log_softmax(dim=-1, dtype=torch.float32)
            rows = [runner.requests[name] for name in runner.input_batch.req_ids]
            seeds_B = seed_tensor(tuple(row.sampling_params.seed or 0 for row in rows))
            places_B = torch.tensor([_num_drawn(row) for row in rows])
            return draw(logprobs_BV, uniform(seeds_B, places_B)), logprobs_BV

        runner.sampler.topk_topp_sampler.forward = forward

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

    def manta_sleep(self) -> None:
        """On a CPU: empties the memory behind weights, keys and values. The tensors stay, so that
        whoever refers to them finds them filled again after `manta_wake` and a load."""
        self.manta_emptied = [(each, each.nbytes()) for each in self._storages()]
        for storage, _ in self.manta_emptied:
            storage.resize_(0)
        for module in self.model_runner.get_model().modules():
            if "cpu_linear" in vars(module):
                # It holds a packed copy of the weights; loading makes another.
                module.cpu_linear = functional.linear

    def manta_wake(self) -> None:
        for storage, size in self.manta_emptied:
            storage.resize_(size)
        for cache in self.model_runner.kv_caches:
            # What is masked is still multiplied: it must be finite.
            cache.zero_()

    def manta_held_bytes(self) -> int:
        """Without the packed copies of weights that the kernels of a CPU keep."""
        if self.device.type == "cpu":
            return sum(storage.nbytes() for storage in self._storages())
        from vllm.device_allocator.cumem import CuMemAllocator

        held = CuMemAllocator.get_instance().pointer_to_data.values()
        return sum(data.handle[1] for data in held if not data.is_asleep)

    def _storages(self) -> list[torch.UntypedStorage]:
        """Each once, whatever shares it."""
        tensors = [*self.model_runner.get_model().parameters(), *self.model_runner.kv_caches]
        found = {storage._cdata: storage for storage in (t.untyped_storage() for t in tensors)}
        return list(found.values())


def _num_drawn(row: CachedRequestState) -> int:
    """Tokens of the row's sample that its seed has drawn."""
    before = (row.sampling_params.extra_args or {}).get(DRAWN, 0)
    return int(before) + len(row.output_token_ids)


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
