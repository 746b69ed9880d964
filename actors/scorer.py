"""The scorer worker: a Ray shell that batches what it is shown over one frozen model.

The model is loaded once per worker, when the first stage that needs it opens, and again only where
a stage names another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from manta.actors.alive import Alive
from manta.actors.cores import available_cores
from manta.actors.scorers.settings import ScorerKind
from manta.actors.scoring_queue import QueueFigures, ScoringQueue
from manta.envs.packing import PackedShown
from manta.envs.records import Score, Shown
from manta.envs.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from manta.actors.scorers.reward_model import RewardModelScorer
    from manta.actors.scorers.token_logprobs import TokenLogprobs

    Frozen: TypeAlias = RewardModelScorer | TokenLogprobs


class ScorerWorker(Alive):
    def __init__(
        self,
        tokenizer: str,
        threads: int,
        tokens_per_batch: int,
        dtype: Literal["float32", "bfloat16"],
        uses_gpu: bool,
        kind: ScorerKind = "reward_model",
    ) -> None:
        """`tokenizer` is the policy's."""
        # Imported here: the driver and reward workers name this class without loading torch.
        import torch

        from manta.actors.scorers.reward_model import ScorerSettings

        torch.set_num_threads(threads or available_cores())
        self._tokenizer = build_tokenizer(tokenizer)
        self._settings = ScorerSettings(tokens_per_batch, dtype, "cuda" if uses_gpu else "cpu")
        self._kind = kind
        self._scorer: Frozen | None = None
        self._queue: ScoringQueue[Shown, tuple[Score, ...]] = ScoringQueue(
            self._score, lambda scores, items: scores[items]
        )

    async def load(self, folder: str) -> str:
        """Takes the model in `folder` from the next batch on; its version.

        Raises ValueError where there is none that can be used.
        """
        return await self._queue.between(lambda: self._load(Path(folder)))

    async def score(self, packed: PackedShown) -> list[Score]:
        return list(await self._queue.score(packed.unpack()))

    async def figures(self) -> QueueFigures:
        return self._queue.figures()

    def _load(self, folder: Path) -> str:
        from manta.actors.scorers.reward_model import RewardModelScorer
        from manta.actors.scorers.token_logprobs import TokenLogprobs

        of_kind = RewardModelScorer if self._kind == "reward_model" else TokenLogprobs
        self._scorer = of_kind(folder, self._tokenizer, self._settings)
        return self._scorer.version

    def _score(self, shown: Sequence[Shown]) -> tuple[Score, ...]:
        assert self._scorer is not None, "a scorer is loaded before its lane opens"
        return self._scorer.score(shown)
