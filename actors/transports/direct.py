"""The sending end of the direct transports, on a learner rank: vLLM's own trainer-side engines.

Owns what vLLM is told there: the weights as a stream of named tensors, where the processes meet,
and the size of what is sent at once. Whom rank 0 talks to is `manta.actors.meeting`'s; the
receiving end is `manta.actors.engines.vllm_arrivals`. Loads vllm: for ranks that send directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from manta.actors.engines.vllm_arrivals import TransferInfo
from manta.actors.transports.patience import giving_up, patience
from manta.actors.weights import Weights

TrainerInit: TypeAlias = Callable[..., TrainerWeightTransferEngine]

_MOST_AT_ONCE = 1 << 30
"""Bytes of GPU memory that a rank takes to send from, unless one tensor is larger."""


class PackedSource(WeightSource):  # type: ignore[misc]
    """The tensors of `weights`, in name order, each copied to `device` when its turn comes."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.weights, self._device = weights, device

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(s.name, getattr(torch, s.dtype), s.shape) for s in self.weights.specs]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for spec in self.weights.specs:
            # A copy: the bytes may be read-only, which torch does not know
            octets = torch.tensor(self.weights.data[spec.start : spec.end], device=self._device)
            yield spec.name, octets.view(getattr(torch, spec.dtype)).reshape(spec.shape)


def trainer_info(
    name: str, rank: int, address: tuple[str, int], num_receivers: int, weights: Weights
) -> TrainerInitInfo:
    """What vLLM's trainer-side engine `name` opens with: rank 0 sends; over nccl it meets
    `num_receivers` worker processes at `address`, over ipc all ranks lend memory of their GPUs."""
    largest = max(spec.end - spec.start for spec in weights.specs)
    at_once = max(largest, min(_MOST_AT_ONCE, len(weights.data)))
    if name == "nccl":
        host, port = address
        return NCCLTrainerInitInfo(
            master_address=host,
            master_port=port,
            world_size=1 + num_receivers,
            packed=True,
            packed_buffer_size_bytes=at_once,
            rank=rank,
        )
    return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=at_once, rank=rank)


def for_each_engine(info: TransferInfo, processes: Sequence[int]) -> list[TransferInfo]:
    """`info` as it opens the receiving ends, by engine: vLLM counts the ranks of one engine's
    processes from `rank_offset` (nccl only), and engine i has `processes[i]`."""
    first = info.get("rank_offset")
    if not isinstance(first, int):
        return [info] * len(processes)
    firsts = [first + sum(processes[:i]) for i in range(len(processes))]
    return [{**info, "rank_offset": each} for each in firsts]


class DirectSender:
    """One rank's end of transport `name`, on `device`. What vLLM opened stays open while the same
    processes meet and all goes well."""

    def __init__(
        self,
        name: str,
        rank: int,
        device: torch.device,
        trainer_init: TrainerInit = WeightTransferTrainerFactory.trainer_init,
    ) -> None:
        self._name, self._rank, self._device = name, rank, device
        self._trainer_init = trainer_init
        self._open: tuple[TrainerWeightTransferEngine, PackedSource] | None = None
        self._members: tuple[str, ...] = ()

    def send(
        self,
        weights: Weights,
        client: VLLMWeightSyncClient,
        members: Sequence[str],
        num_receivers: int,
        address: Callable[[], tuple[str, int]],
    ) -> None:
        """Brings `weights` to the `num_receivers` processes of `members`, by name, whom `client`
        reaches; `address` finds a free one for a new meeting. Every rank calls this.

        Raises RuntimeError, ValueError or OSError, and whatever `client` raises, where it fails;
        a process that died is noticed after `patience` at the latest.
        """
        members, before, self._members = tuple(members), self._members, ()
        if self._open is None or members != before:
            self.close()
            source = PackedSource(weights, self._device)
            info = trainer_info(self._name, self._rank, address(), num_receivers, weights)
            self._open = self._trainer_init(info, client=client, source=source), source
        engine, source = self._open
        engine.client, source.weights = client, weights
        with giving_up(patience(len(weights.data)), engine.shutdown):
            engine.send_weights()
        if self._name == "ipc":
            # What torch keeps for the next time, the engine on the same GPU cannot have
            torch.cuda.empty_cache()
        self._members = members

    def close(self) -> None:
        """Ends what is open; the next `send` opens it anew."""
        if self._open is not None:
            self._open[0].shutdown()
        self._open = None
