"""A weight transfer of vLLM's kind through files, for machines without a GPU: what `nccl` is but
for the wire. vLLM's base classes, its steps and its layer-wise reload are the real ones.

vLLM's worker process imports this by the name of `SpoolExtension`, and so knows the transfer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from manta.actors.engines.vllm_worker import WorkerExtension
from tests.spool import read_spool

SPOOL = "spool"


@dataclass
class SpoolInit(WeightTransferInitInfo):  # type: ignore[misc]
    folder: str


@dataclass
class SpoolUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    file: str
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class SpoolTransferEngine(NCCLWeightTransferEngine):  # type: ignore[misc]
    """In vLLM's worker. Start and finish are those of nccl."""

    init_info_cls = SpoolInit
    update_info_cls = SpoolUpdate

    def init_transfer_engine(self, init_info: SpoolInit) -> None:
        self._folder = Path(init_info.folder)

    def update_weights(self, update_info: dict[str, object]) -> None:
        """As vLLM's, but that there is no device to wait for."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SpoolUpdate) -> None:
        file = self._folder / update_info.file
        tensors = read_spool(file, update_info.names, update_info.dtype_names, update_info.shapes)
        self.model.load_weights(tensors)


WeightTransferEngineFactory.register_engine(SPOOL, SpoolTransferEngine)


class SpoolExtension(WorkerExtension):
    """Manta's, in a module whose import brings the transfer along."""


@dataclass
class SpoolTrainerInit(TrainerInitInfo):  # type: ignore[misc]
    backend: ClassVar[str] = SPOOL


class SpoolTrainer(TrainerWeightTransferEngine):  # type: ignore[misc]
    """On a learner rank: two parts, as a large model has many. `breaks`: the next time, the second
    one does not come."""

    init_info_cls = SpoolTrainerInit
    folder: ClassVar[Path]
    breaks: ClassVar[bool] = False

    @classmethod
    def trainer_init(cls, init_info, *, client, source=None):  # type: ignore[no-untyped-def]
        client.init_weight_transfer_engine(asdict(SpoolInit(str(cls.folder))))
        return cls(client=client, source=source)

    def send_weights(self) -> None:
        tensors = list(self.source)
        self.client.start_weight_update()
        half = len(tensors) // 2
        for file, part in (("first", tensors[:half]), ("second", tensors[half:])):
            if SpoolTrainer.breaks and file == "second":
                SpoolTrainer.breaks = False
                raise RuntimeError("the wire broke")
            flat = [t.contiguous().reshape(-1).view(torch.uint8).numpy() for _, t in part]
            np.concatenate(flat).tofile(self.folder / file)
            update = SpoolUpdate(
                file=file,
                names=[name for name, _ in part],
                dtype_names=[str(t.dtype).removeprefix("torch.") for _, t in part],
                shapes=[list(t.shape) for _, t in part],
            )
            self.client.update_weights(asdict(update))
        self.client.finish_weight_update()
