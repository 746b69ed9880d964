"""Ragged rows under a policy that is a table of logits, and ways to deal them to micro-batches."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from manta.algorithms.aggregate import Denominators, denominators, row_weight
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import LossTerms, TokenBatch

WORDS = 7


@dataclasses.dataclass(frozen=True)
class Rows:
    """Ragged rows with a policy that is a table of logits: [T, 7], float64. `selected_T` are those
    that a choice of tokens has made, of rows that are not asked for one."""

    counts_R: Tensor
    columns: dict[str, Tensor]
    tokens_T: Tensor
    logits_TV: Tensor
    behaviour_T: Tensor
    proximal_T: Tensor
    reference_T: Tensor
    selected_T: Tensor | None = None

    @staticmethod
    def random(counts: list[int], seed: int) -> Rows:
        generator = np.random.default_rng(seed)
        num_rows, num_tokens = len(counts), sum(counts)
        tokens = torch.from_numpy(generator.integers(0, WORDS, num_tokens))
        logits = torch.from_numpy(generator.normal(size=(num_tokens, WORDS)))
        logprob = logits.log_softmax(-1)[torch.arange(num_tokens), tokens]
        near = torch.from_numpy(generator.normal(size=(3, num_tokens)) * 0.4)
        return Rows(
            counts_R=torch.tensor(counts, dtype=torch.int64),
            columns={
                "advantage": torch.from_numpy(generator.normal(size=num_rows)),
                "weight": torch.from_numpy(generator.choice([0.5, 1.0, 2.0], num_rows)),
                "keep": torch.from_numpy(generator.choice([0.0, 1.0, 1.0], num_rows)),
            },
            tokens_T=tokens,
            logits_TV=logits,
            behaviour_T=logprob + near[0],
            proximal_T=logprob + near[1],
            reference_T=logprob + near[2],
            selected_T=torch.from_numpy(generator.random(num_tokens) < 0.3),
        )

    @property
    def update(self) -> Denominators:
        return denominators(self.counts_R, row_weight(self.columns))

    def take(self, rows: list[int]) -> Rows:
        """The rows of these indices, in that order."""
        starts = [0, *np.cumsum(self.counts_R.tolist()).tolist()]
        token_list = [t for r in rows for t in range(starts[r], starts[r + 1])]
        picked_R = torch.tensor(rows, dtype=torch.int64)
        picked_T = torch.tensor(token_list, dtype=torch.int64)
        return Rows(
            self.counts_R[picked_R],
            {name: column[picked_R] for name, column in self.columns.items()},
            *(
                getattr(self, name)[picked_T]
                for name in ("tokens_T", "logits_TV", "behaviour_T", "proximal_T", "reference_T")
            ),
            selected_T=None if self.selected_T is None else self.selected_T[picked_T],
        )

    def terms(self, algorithm: AlgorithmSettings, update: Denominators) -> LossTerms:
        batch = self.batch(algorithm, update)
        return Objective(algorithm, report_entropy=True).loss(batch, self.statistics())

    def batch(self, algorithm: AlgorithmSettings, update: Denominators) -> TokenBatch:
        return flatten(
            algorithm,
            self.counts_R,
            self.columns,
            update,
            behaviour_T=self.behaviour_T,
            proximal_T=self.proximal_T if algorithm.proximal == "learner" else None,
            reference_T=self.reference_T,
            vocabulary_T=(0.7 * self.logits_TV.detach()).log_softmax(-1).mean(-1),
            selected_T=self.selected_T if algorithm.chooses_tokens else None,
        )

    def statistics(self) -> dict[str, Tensor]:
        log_TV = self.logits_TV.log_softmax(-1)
        return {
            "logprob": log_TV[torch.arange(len(self.tokens_T)), self.tokens_T],
            "entropy": -(log_TV.exp() * log_TV).sum(-1),
            "vocab_mean": self.logits_TV.mean(-1),
            "logsumexp": self.logits_TV.logsumexp(-1),
        }


def loss_and_gradient(
    rows: Rows, algorithm: AlgorithmSettings, update: Denominators
) -> tuple[LossTerms, Tensor]:
    logits = rows.logits_TV.clone().requires_grad_()
    terms = dataclasses.replace(rows, logits_TV=logits).terms(algorithm, update)
    return terms, torch.autograd.grad(terms.loss, logits)[0]


@st.composite
def ragged_and_split(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Trained tokens per row, and the rows dealt to micro-batches in any order."""
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))
    order = draw(st.permutations(range(len(counts))))
    cuts = sorted(draw(st.lists(st.integers(0, len(counts)), max_size=4)))
    bounds = [0, *cuts, len(counts)]
    return counts, [order[a:b] for a, b in itertools.pairwise(bounds)]
