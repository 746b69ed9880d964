"""Statistics of tokens under a model whose logits are made of those of several others.

The models are of one vocabulary. Of each the hidden states of all tokens are there at once, its
logits a chunk of tokens at a time. Where the models come from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from manta.actors.backends.protocol import Want
from manta.actors.models.policy import head_of, hidden_states
from manta.actors.models.products import linear
from manta.actors.models.vocabulary import CHUNK_ELEMENTS, statistics_of_logits
from manta.actors.rows import Row
from manta.actors.scorers.settings import Combination, ContrastConfig

WEIGHT = "weight"
"""The statistic that says how much a token counts, float32[T]; there with a contrast."""


def evaluate_combined(
    models: Mapping[str, nn.Module],
    combination: Combination,
    rows: Sequence[Row],
    wants: Sequence[Want],
    temperature: float,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> dict[str, Tensor]:
    """As `manta.actors.models.policy.evaluate`, without gradients, of the distribution
    `softmax(sum_i c_i z_i + w (z_toward - z_away))`, z_i being the logits of the `models` by name,
    divided by the temperature, and w the contrast's (see `ContrastConfig`).

    `z_1 + w (z_1 - z_2)`, z_1 of a model trained by DPO and z_2 of one trained by DPO on swapped
    answers, is AlignDistil (arXiv 2503.02832) as its authors' code has it (github.com/songmzhang/
    AlignDistil, commit 0c7e5c5): `scale`, there beta2, is 15 on samples of the policy and 10 on
    given answers, `beta` 0.1. It has p at temperature 1. The paper itself could not be read.
    """
    with torch.no_grad():
        states, targets_T = {}, torch.zeros(0)
        for name, model in models.items():
            states[name], targets_T = hidden_states(model, rows)
        mixer = _Mixer(models, combination, states, temperature)
        found = statistics_of_logits(
            mixer.logits, targets_T, mixer.num_words, wants, chunk_elements
        )
    return found if combination.contrast is None else found | {WEIGHT: mixer.weight_T}


class _Mixer:
    """The combination's logits of tokens with hidden `states` [T, D] of each model. `weight_T` is
    filled in as the tokens are asked for."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        combination: Combination,
        states: Mapping[str, Tensor],
        temperature: float,
    ) -> None:
        self._heads = {name: head_of(model) for name, model in models.items()}
        self._combination, self._states, self._temperature = combination, states, temperature
        some = next(iter(states.values()))
        self.num_words = next(iter(self._heads.values())).weight.shape[0]
        self.weight_T = torch.ones(len(some), dtype=torch.float32, device=some.device)

    def logits(self, part: slice) -> Tensor:
        """float32[C, V] of the tokens `part`."""
        each = {name: self._of(name, part) for name in self._heads}
        mixed_CV = torch.zeros_like(next(iter(each.values())))
        for name, coefficient in self._combination.coefficients.items():
            mixed_CV.add_(each[name], alpha=coefficient)
        told = self._combination.contrast
        if told is not None:
            toward_CV, away_CV = each[told.toward], each[told.away]
            pull_C = _pull(told, toward_CV, away_CV)
            self.weight_T[part] = told.beta / pull_C
            mixed_CV.addcmul_(pull_C[:, None], toward_CV.sub_(away_CV))
        return mixed_CV

    def _of(self, name: str, part: slice) -> Tensor:
        head = self._heads[name]
        return linear(self._states[name][part], head.weight, head.bias).float() / self._temperature


def _pull(told: ContrastConfig, toward_CV: Tensor, away_CV: Tensor) -> Tensor:
    """w, [C]."""
    apart_CV = torch.softmax(toward_CV, -1).sub_(torch.softmax(away_CV, -1))
    return told.scale * apart_CV.abs_().sum(-1) + told.least
