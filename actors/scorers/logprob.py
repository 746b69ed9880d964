"""The log-prob scorer: a frozen model (the reference policy) read off written trajectories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from manta.actors.models.policy import by_row, evaluate_in_batches
from manta.actors.rows import Row
from manta.envs.records import ReferenceStatistics, Trajectory


class LogprobScorer:
    """`temperature` must be the rollout's: KL compares two distributions of the same temperature.

    `version` names the weights in every result, all of which come from one version; whoever changes
    the model's weights changes it. `tokens_per_batch` bounds the tokens scored at once: rows lie
    one behind the other, without padding, where the model's attention can keep them apart.
    """

    def __init__(
        self, model: nn.Module, version: str, tokens_per_batch: int, temperature: float = 1.0
    ) -> None:
        self._model = model.requires_grad_(False)
        self.version = version
        self._tokens_per_batch = tokens_per_batch
        self._temperature = temperature

    def score(self, trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        """float32[L] per trajectory, in order: the log-prob of every token with `loss_mask` set
        after those before it, 0 elsewhere."""
        rows = [
            Row(index, trajectory.token_ids, trajectory.loss_mask, None, None, {})
            for index, trajectory in enumerate(trajectories)
        ]
        with torch.inference_mode():
            found = evaluate_in_batches(
                self._model, rows, ("logprob",), self._temperature, self._tokens_per_batch
            )["logprob"]
        return ReferenceStatistics(self.version, tuple(by_row(rows, found)))
