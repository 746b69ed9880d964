"""A rollout worker with the embedded engine, to which learner ranks send weights through files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.engines.registry import ENGINES, EngineParts
from manta.actors.models.causal import build_model
from manta.actors.rollout import RolloutWorker
from manta.actors.weight_tensors import pack
from manta.actors.weights import Receipt
from manta.envs.records import WeightVersion
from tests.spool import read_spool


class SpoolEngine(EmbeddedEngine):
    """Takes transfers as vLLM does. A file `damage` in the folder spoils one bit on arrival."""

    async def open_transfer(self, info: Mapping[str, object]) -> None:
        self._folder = Path(str(info["folder"]))

    async def begin_transfer(self, num_bytes: int) -> None:
        self._arrived: dict[str, Tensor] = {}

    async def take_transfer(self, info: Mapping[str, object]) -> None:
        told = cast(dict[str, Any], info)
        file = self._folder / told["file"]
        self._arrived |= read_spool(file, told["names"], told["dtype_names"], told["shapes"])

    async def end_transfer(self, version: WeightVersion, sha256: str) -> Receipt:
        with suppress(FileNotFoundError):
            (self._folder / "damage").unlink()
            next(iter(self._arrived.values())).view(-1)[0] += 1
        weights = pack(self._arrived, version)
        return await self.load(weights) if weights.sha256 == sha256 else Receipt(
            version, weights.sha256
        )  # fmt: skip


def spool_engine(parts: EngineParts) -> SpoolEngine:
    return SpoolEngine(
        build_model(parts.model, parts.vocab_size, parts.seed),
        parts.model.context,
        parts.settings.max_rows,
        parts.settings.threads,
        parts.deterministic,
        parts.version,
        parts.occupancy,
    )


class SpoolWorker(RolloutWorker):
    def __init__(self, *arguments: Any) -> None:
        ENGINES["embedded"] = spool_engine
        super().__init__(*arguments)
