"""ROVER: values of the uniform policy, from the policy's log-probs before and after an update."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import row_weight
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import LossTerms, vocabulary_mean
from tests.unit.algorithms.ragged import WORDS, Rows

ROVER = dataclasses.replace(PRESETS["rover"], rho=0.6, successor_weight=1.7)


@dataclasses.dataclass(frozen=True)
class Moved:
    """Rows under two tables of logits [T, 7], at the start of the step and now."""

    rows: Rows
    start_TV: Tensor

    @staticmethod
    def random(seed: int) -> "Moved":
        rows = Rows.random([5, 0, 3, 6, 1, 2], seed)
        generator = torch.Generator().manual_seed(seed)
        noise_TV = torch.randn(rows.logits_TV.shape, generator=generator, dtype=torch.float64)
        return Moved(rows, rows.logits_TV + 0.5 * noise_TV)

    def terms(self, algorithm: AlgorithmSettings, logits_TV: Tensor) -> LossTerms:
        now, start = (
            dataclasses.replace(self.rows, logits_TV=table).statistics()
            for table in (logits_TV, self.start_TV)
        )
        batch = flatten(
            algorithm,
            self.rows.counts_R,
            self.rows.columns,
            self.rows.update,
            behaviour_T=self.rows.behaviour_T,
            proximal_T=start["logprob"],
            vocabulary_T=vocabulary_mean(start),
        )
        objective = Objective(algorithm)
        return objective.loss(batch, {want: now[want] for want in objective.wants})

    def by_loop(self, algorithm: AlgorithmSettings, now: np.ndarray, held: np.ndarray) -> float:
        """Algorithm 1, token by token; targets are made of `held`."""
        start = self.start_TV.numpy()
        weights, tokens = row_weight(self.rows.columns).numpy(), self.rows.tokens_T.tolist()
        total = sum(w for w, n in zip(weights, self.rows.counts_R, strict=True) if n)
        loss, first = 0.0, 0
        for row, count in enumerate(self.rows.counts_R.tolist()):
            advantage, terms = float(self.rows.columns["advantage"][row]), []
            for t in range(first, first + count):
                own = log_softmax(now[t])[tokens[t]] - log_softmax(start[t])[tokens[t]]
                target = advantage
                if t + 1 < first + count:
                    values = [
                        algorithm.rho * (a - b)
                        for a, b in zip(
                            log_softmax(held[t + 1]), log_softmax(start[t + 1]), strict=True
                        )
                    ]
                    target += algorithm.successor_weight * sum(values) / WORDS
                terms.append((algorithm.rho * own - target) ** 2)
            first += count
            if count:
                loss += weights[row] / total * sum(terms) / count
        return loss


def log_softmax(logits: np.ndarray) -> list[float]:
    total = math.log(sum(math.exp(x) for x in logits))
    return [float(x) - total for x in logits]


@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_those_of_the_formula(seed: int) -> None:
    moved = Moved.random(seed)
    logits_TV = moved.rows.logits_TV.clone().requires_grad_()
    terms = moved.terms(ROVER, logits_TV)
    (gradient_TV,) = torch.autograd.grad(terms.loss, logits_TV)
    now = logits_TV.detach().numpy()
    assert terms.loss.item() == pytest.approx(moved.by_loop(ROVER, now, now), rel=1e-12)
    wanted, step = np.zeros_like(now), 1e-6
    for place in np.ndindex(now.shape):
        ahead, behind = now.copy(), now.copy()
        ahead[place] += step
        behind[place] -= step
        difference = moved.by_loop(ROVER, ahead, now) - moved.by_loop(ROVER, behind, now)
        wanted[place] = difference / (2 * step)
    np.testing.assert_allclose(gradient_TV.numpy(), wanted, rtol=1e-6, atol=1e-8)
    assert abs(float(terms.sums["successor_value"])) > 1e-3


def test_before_the_policy_moves_it_is_reinforce_twice() -> None:
    """Q and Q' are 0 there, and the derivative of a square is two."""
    rows = Rows.random([4, 2, 6], seed=4)
    still = Moved(rows, rows.logits_TV)
    logits_TV = rows.logits_TV.clone().requires_grad_()
    (gradient_TV,) = torch.autograd.grad(still.terms(ROVER, logits_TV).loss, logits_TV)
    batch = flatten(ROVER, rows.counts_R, rows.columns, rows.update)
    logprob_T = dataclasses.replace(rows, logits_TV=logits_TV).statistics()["logprob"]
    surrogate = (-2 * ROVER.rho * batch.weight_T * batch.advantage_T * logprob_T).sum()
    torch.testing.assert_close(gradient_TV, *torch.autograd.grad(surrogate, logits_TV))


def test_without_the_start_of_the_step_it_says_what_is_missing() -> None:
    rows = Rows.random([4], seed=1)
    batch = flatten(ROVER, rows.counts_R, rows.columns, rows.update, rows.behaviour_T)
    with pytest.raises(ValueError, match="which only the learner knows: set proximal to learner"):
        Objective(ROVER).loss(batch, rows.statistics())
