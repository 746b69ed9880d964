"""The reference-model worker: a Ray shell that batches scoring requests over one scorer.

Requests that arrive while the scorer is busy are scored together in its next pass.
"""

from __future__ import annotations

import numpy as np

from manta.actors.cores import available_cores
from manta.actors.models.spec import ModelSpec
from manta.actors.scoring_queue import ScoringQueue
from manta.actors.weights import Receipt, Weights
from manta.envs.packing import PackedTrajectories
from manta.envs.records import Float32, ReferenceStatistics


class ReferenceWorker:
    def __init__(
        self,
        model: ModelSpec,
        vocab_size: int,
        seed: int,
        threads: int,
        tokens_per_batch: int,
        temperature: float,
    ) -> None:
        # Imported here: the driver and environment workers name this class without loading torch.
        import torch

        from manta.actors.models.causal import build_model
        from manta.actors.scorers.logprob import LogprobScorer

        torch.set_num_threads(threads or available_cores())
        self._scorer = LogprobScorer(
            build_model(model, vocab_size, seed), "initial", tokens_per_batch, temperature
        )
        self._queue = ScoringQueue(self._scorer.score, statistics_of)

    async def score(self, packed: PackedTrajectories) -> tuple[str, Float32]:
        """The reference's version, and the statistics of all trajectories back to back."""
        statistics = await self._queue.score(packed.unpack())
        return statistics.version, np.concatenate(statistics.logprobs)

    async def load(self, weights: Weights) -> Receipt:
        """Makes `weights` the reference, between two batches; the receipt hashes what arrived."""
        return await self._queue.between(lambda: self._scorer.load(weights))


def statistics_of(statistics: ReferenceStatistics, rows: slice) -> ReferenceStatistics:
    """Those of some of the trajectories."""
    return ReferenceStatistics(statistics.version, statistics.logprobs[rows])
