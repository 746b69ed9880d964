"""What Manta does inside vLLM's worker processes: hash weights, load them, draw tokens, sleep.

vLLM mixes this class into its worker (`worker_extension_cls`), so every process that holds a part
of the model has these methods. Weights come in a file that the engine wrote for them alone; numbers
are viewed in it, nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from manta.actors.engines.draws import seed_tensor, uniform
from manta.actors.engines.sampler import draw
from manta.actors.engines.vllm_arrivals import Arrivals, TransferInfo, from_plain
from manta.actors.engines.vllm_weights import DRAWN, Index
from manta.actors.transports.patience import giving_up
from manta.actors.weight_tensors import stream_hash
from manta.actors.weights import TensorSpec, content_hash

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.v1.worker.gpu_input_batch import CachedRequestState
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class WorkerExtension:
    """Methods are called by name, so they start with `manta_`: vLLM refuses one that it has too.
    What stands here without a value is the worker's own."""

    reload_weights: Callable[..., None]
    add_lora: Callable[[LoRARequest], bool]
    start_weight_update: Callable[[], None]
    update_weights: Callable[[dict[str, object]], None]
    finish_weight_update: Callable[[], None]
    weight_transfer_engine: WeightTransferEngine | None
    model_runner: GPUModelRunner
    use_v2_model_runner: bool
    device: torch.device
    _weight_update_active: bool
    _arrivals: Arrivals | None = None

    def manta_processes(self, owner: int) -> list[int]:
        """This one and, where that is another, the engine core, a child of process `owner`."""
        return sorted({os.getpid(), os.getppid()} - {owner})

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
        self._end_arrivals()
        self.reload_weights(weights_iterator=_tensors(_specs(index), _bytes(path)))
        self._pack_head()

    def manta_hash_adapter(self, folder: str) -> str:
        """SHA-256 over the adapter's tensors in `folder`, as this process reads them."""
        with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
            return stream_hash((name, file.get_tensor(name)) for name in sorted(file.keys()))

    def manta_load_adapter(self, name: str, number: int, folder: str) -> None:
        """Makes the adapter in `folder` ready for requests that name it by its number."""
        self.add_lora(LoRARequest(name, number, folder))

    def manta_begin_transfer(self) -> None:
        """Makes ready for weights that a learner rank sends."""
        self._end_arrivals()
        self.start_weight_update()
        assert self.weight_transfer_engine is not None
        self._arrivals = Arrivals(self.weight_transfer_engine.model)

    def manta_take_transfer(self, info: TransferInfo, seconds: float) -> None:
        """Receives and loads what `info` describes. What takes longer than `seconds` waits for a
        sender that died: the connection is ended, and the hash of what came is not right."""
        assert self.weight_transfer_engine is not None
        with giving_up(seconds, self.weight_transfer_engine.shutdown):
            self.update_weights(dict(from_plain(info)))

    def manta_end_transfer(self) -> str:
        """SHA-256 over the tensors that have arrived, which are served from here on."""
        self.finish_weight_update()
        self._pack_head()
        assert self._arrivals is not None
        arrivals, self._arrivals = self._arrivals, None
        return arrivals.close()

    def _end_arrivals(self) -> None:
        """After a transfer that broke off: vLLM's reload must start from whole layers."""
        if self._arrivals is None:
            return
        self._arrivals.close()
        self._arrivals = None
        self._weight_update_active = True
        self.finish_weight_update()

    def _pack_head(self) -> None:
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
