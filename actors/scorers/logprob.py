"""The log-prob scorer: a frozen model (the reference policy) read off written trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from manta.actors.backends.protocol import TopK, Want
from manta.actors.models.combined import WEIGHT
from manta.actors.models.policy import Evaluate, by_row, evaluate, in_batches
from manta.actors.rows import Row
from manta.envs.records import Likeliest, ReferenceStatistics, Trajectory


class LogprobScorer:
    """`temperature` must be the rollout's: KL compares two distributions of the same temperature.

    `version` names the weights in every result, all of which come from one version; whoever changes
    the model's weights changes it. `tokens_per_batch` bounds the tokens scored at once: rows lie
    one behind the other, without padding, where the model's attention can keep them apart.
    """

    def __init__(
        self, model: nn.Module, version: str, tokens_per_batch: int, temperature: float = 1.0
    ) -> None:
        self._evaluate = partial(evaluate, model.requires_grad_(False))
        self.version = version
        self._tokens_per_batch = tokens_per_batch
        self._temperature = temperature

    def score(self, trajectories: Sequence[Trajectory], top_k: int = 0) -> ReferenceStatistics:
        """See `score_with`."""
        return score_with(
            self._evaluate,
            self.version,
            trajectories,
            top_k,
            self._tokens_per_batch,
            self._temperature,
        )


def score_with(
    evaluate: Evaluate,
    version: str,
    trajectories: Sequence[Trajectory],
    top_k: int,
    tokens_per_batch: int,
    temperature: float,
) -> ReferenceStatistics:
    """float32[L] per trajectory, in order: the log-prob of every token with `loss_mask` set after
    those before it, 0 elsewhere. With `top_k` also what is likeliest at these, of that many tokens.
    """
    rows = [
        Row(index, trajectory.token_ids, trajectory.loss_mask, None, None, {})
        for index, trajectory in enumerate(trajectories)
    ]
    wants: list[Want] = ["logprob"]
    if top_k:
        wants += [TopK(top_k), "top_ids", "top_rest"]
    with torch.inference_mode():
        found = in_batches(evaluate, rows, wants, temperature, tokens_per_batch)
    likeliest = _likeliest(rows, found) if top_k else ()
    return ReferenceStatistics(version, tuple(by_row(rows, found["logprob"])), likeliest)


def _likeliest(rows: Sequence[Row], found: dict[str, Tensor]) -> tuple[Likeliest, ...]:
    ids_TK = found["top_ids"].cpu().numpy()
    logprobs_TK1 = torch.cat([found["top_k"], found["top_rest"][:, None]], dim=1).cpu().numpy()
    weights_T = np.ones(len(ids_TK), np.float32)
    if WEIGHT in found:
        weights_T = found[WEIGHT].cpu().numpy()
    ends = np.cumsum([row.num_tokens for row in rows])[:-1]
    parts = (np.split(each, ends) for each in (ids_TK, logprobs_TK1, weights_T))
    return tuple(Likeliest(*each) for each in zip(*parts, strict=True))
