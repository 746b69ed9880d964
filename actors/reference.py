"""The reference-model worker: a Ray shell that batches scoring requests over one scorer.

Requests that arrive while the scorer is busy are scored together in its next pass. Weights come
between two passes, so that every request, and with it every group, is scored by one version.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from manta.actors.alive import Alive
from manta.actors.cores import available_cores
from manta.actors.models.spec import ModelSpec
from manta.actors.scorers.settings import Combination
from manta.actors.scoring_queue import ScoringQueue
from manta.actors.stored_folder import StoredFolder, WrittenFile
from manta.actors.transports.protocol import BadParcel, Parcel
from manta.actors.transports.registry import build_transport
from manta.actors.transports.settings import TransportSettings
from manta.actors.weights import Receipt, Weights, content_hash
from manta.envs.packing import PackedReferences, PackedTrajectories, pack_references
from manta.envs.records import ReferenceStatistics, Trajectory

if TYPE_CHECKING:
    from manta.actors.scorers.combining import CombinedState
    from manta.actors.scorers.following import ReferenceState


class ReferenceWorker(Alive):
    def __init__(
        self,
        model: ModelSpec,
        vocab_size: int,
        seed: int,
        threads: int,
        tokens_per_batch: int,
        temperature: float,
        transport: TransportSettings,
    ) -> None:
        # Imported here: the driver and environment workers name this class without loading torch.
        import torch

        from manta.actors.models.causal import build_model
        from manta.actors.scorers.combining import CombiningScorer

        torch.set_num_threads(threads or available_cores())
        build = partial(build_model, model, vocab_size, seed)
        self._scorer = CombiningScorer(build, tokens_per_batch, temperature)
        self._in_use = asyncio.Lock()
        self._queues: dict[int, ScoringQueue[Trajectory, ReferenceStatistics]] = {}
        self._transport = build_transport(transport)

    async def score(self, packed: PackedTrajectories, top_k: int) -> PackedReferences:
        """The statistics of all trajectories, as of one group; with `top_k` also of that many
        tokens that are likely. Requests with the same go together."""
        statistics = await self._queue(top_k).score(packed.unpack())
        return pack_references([statistics])

    async def load(self, weights: Weights, name: str) -> Receipt:
        """Makes `weights` the reference; the receipt hashes what arrived."""
        return await self._queue(0).between(lambda: self._scorer.load(weights, name))

    async def combine(self, combination: Combination, *weights: Weights) -> tuple[Receipt, ...]:
        """Makes `combination` the reference, of whose names `weights` are; receipts hash what
        arrived."""
        return await self._queue(0).between(lambda: self._scorer.combine(combination, weights))

    async def follow(self, parcel: Parcel, sha256: str, name: str, decay: float | None) -> Receipt:
        """Moves towards the policy whose weights, with hash `sha256`, the parcel brings in full, or
        becomes it. The receipt hashes what arrived; nothing is changed by other bytes."""
        return await self._queue(0).between(lambda: self._follow(parcel, sha256, name, decay))

    async def save(self, folder: str) -> tuple[WrittenFile, ...]:
        """Brings the reference as it is now to a checkpoint's `folder`, beside later scoring."""
        write = await self._queue(0).between(self._scorer.snapshot)
        return await asyncio.to_thread(StoredFolder.at(folder).fill, write)

    async def restore(self, folder: str) -> str:
        """Goes on from what `save` brought to `folder`; the version of that."""
        return await self._queue(0).between(lambda: self._restore(folder))

    async def state(self) -> ReferenceState | CombinedState:
        """What scores now, for another worker."""
        return await self._queue(0).between(self._scorer.state)

    async def adopt(self, state: ReferenceState | CombinedState) -> str:
        """Goes on from another worker's `state`; the version of that."""
        return await self._queue(0).between(lambda: self._scorer.adopt(state))

    async def version(self) -> str:
        """Of what scores now."""
        return await self._queue(0).between(lambda: self._scorer.version)

    def _queue(self, top_k: int) -> ScoringQueue[Trajectory, ReferenceStatistics]:
        if top_k not in self._queues:
            self._queues[top_k] = ScoringQueue(
                lambda trajectories: self._scorer.score(trajectories, top_k),
                statistics_of,
                self._in_use,
            )
        return self._queues[top_k]

    def _follow(self, parcel: Parcel, sha256: str, name: str, decay: float | None) -> Receipt:
        try:
            weights = self._transport.receive(parcel)
        except BadParcel:
            return Receipt(parcel.version, "")
        assert isinstance(weights, Weights), "asked for in full"
        found = content_hash(weights.specs, weights.data)
        if found == sha256:
            self._scorer.follow(weights, name, decay)
        return Receipt(weights.version, found)

    def _restore(self, folder: str) -> str:
        with StoredFolder.at(folder).here() as path:
            return self._scorer.restore(Path(path))


def statistics_of(statistics: ReferenceStatistics, rows: slice) -> ReferenceStatistics:
    """Those of some of the trajectories."""
    return statistics.part(range(len(statistics.logprobs))[rows])
