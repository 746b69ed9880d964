"""The log-prob scorer by name: how likely a frozen causal model finds each token of the policy.

Owns which models can say so, and the scores. The log-probs are `manta.actors.scorers.logprob`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manta.actors.models.causal import build_model
from manta.actors.models.spec import ModelSpec
from manta.actors.scorers.logprob import LogprobScorer
from manta.actors.scorers.reward_model import ScorerSettings, version_of_folder
from manta.actors.scorers.wording import OwnTokens, named, only, wording_for
from manta.envs.protocols import Tokenizer
from manta.envs.records import Score, Shown
from manta.envs.rewards.token_log_ratio import LOGPROB


class TokenLogprobs:
    """The model in `folder`, read off what a policy with the tokenizer `policy` said.

    Raises ValueError where the folder holds no causal language model, or one with other tokens than
    the policy's.
    """

    def __init__(self, folder: Path, policy: Tokenizer, settings: ScorerSettings) -> None:
        self.version = version_of_folder(folder)
        if not isinstance(wording_for(folder, policy), OwnTokens):
            raise ValueError(
                f"scorer model '{folder}' has another tokenizer than the policy: the log-probs of "
                "its tokens say nothing of the policy's; choose a model with the same one"
            )
        spec = ModelSpec(path=str(folder), dtype=settings.dtype)
        model = build_model(spec, policy.vocab_size, 0).to(settings.device)
        self._limit = getattr(model.config, "max_position_embeddings", None)
        self._scorer = LogprobScorer(model, self.version, settings.tokens_per_batch)

    def score(self, shown: Sequence[Shown]) -> tuple[Score, ...]:
        """One score for each of `shown`, in order: the column `LOGPROB` float32[L] has the log-prob
        of every trained token after those before it, at temperature 1, and 0 elsewhere; the value
        is their sum.

        Raises ValueError naming the trajectory that has more tokens than the model takes, or a
        log-prob that is not finite.
        """
        trajectories = [only(each) for each in shown]
        for each, trajectory in zip(shown, trajectories, strict=True):
            length = len(trajectory.token_ids)
            if self._limit is not None and length > self._limit:
                raise ValueError(
                    f"{named(each)} has {length:,} tokens, scorer model {self.version} was made "
                    f"for at most {self._limit:,}: lower model.context, or choose another model"
                )
        found = self._scorer.score(trajectories).logprobs
        for each, logprobs in zip(shown, found, strict=True):
            if not np.isfinite(logprobs).all():
                raise ValueError(
                    f"scorer model {self.version} finds a token of {named(each)} impossible: its "
                    "weights, or what it computes with (dtype), cannot be right"
                )
        return tuple(
            Score(float(logprobs.sum(dtype=np.float64)), {}, columns={LOGPROB: logprobs})
            for logprobs in found
        )
