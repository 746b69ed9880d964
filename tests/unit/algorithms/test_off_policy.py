"""The weights by hand, what they do to the loss, and that they take the bias out of gradients."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import denominators, row_weight
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.off_policy import correct
from manta.algorithms.part_settings import KlSettings, OffPolicySettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from tests.unit.algorithms.ragged import Rows, loss_and_gradient

RATIOS = [0.4, 0.5, 2.0, 5.0, 6.0, 1.0]
ROW_T = torch.tensor([0, 0, 0, 2, 2, 3])
"""Products of the rows: 0.4 (tokens 0 to 2), 30 (3 and 4) and 1."""


@pytest.mark.parametrize(
    ("told", "weights", "bounded"),
    [
        (OffPolicySettings(), [1] * 6, [0] * 6),
        (OffPolicySettings("weight"), RATIOS, [0] * 6),
        (OffPolicySettings("truncate", high=2.0), [0.4, 0.5, 2, 2, 2, 1], [0, 0, 0, 1, 1, 0]),
        (
            OffPolicySettings("mask", low=0.5, high=5.0),
            [0, 0.5, 2, 5, 0, 1],
            [1, 0, 0, 0, 1, 0],
        ),
        (OffPolicySettings("mask", high=5.0), [0.4, 0.5, 2, 5, 0, 1], [0, 0, 0, 0, 1, 0]),
        (OffPolicySettings("mask", low=0.5), [0, 0.5, 2, 5, 6, 1], [1, 0, 0, 0, 0, 0]),
        (OffPolicySettings("weight", "sequence"), [0.4, 0.4, 0.4, 30, 30, 1], [0] * 6),
        (
            OffPolicySettings("truncate", "sequence", high=2.0),
            [0.4, 0.4, 0.4, 2, 2, 1],
            [0, 0, 0, 1, 1, 0],
        ),
        (
            OffPolicySettings("mask", "sequence", 0.3, 5.0),
            [0.4, 0.4, 0.4, 0, 0, 1],
            [0, 0, 0, 1, 1, 0],
        ),
    ],
    ids=str,
)
def test_weights_by_hand(told: OffPolicySettings, weights: list[float], bounded: list[int]) -> None:
    behaviour_T = torch.linspace(-3, -1, 6, dtype=torch.float64)
    # A hair inward, so that 0.5 and 5 are inside their bounds.
    ratio_T = torch.tensor(RATIOS, dtype=torch.float64)
    ratio_T += torch.tensor([0, 1, 0, -1, 0, 0]) * 1e-12
    result = correct(told, ratio_T.log() + behaviour_T, behaviour_T, ROW_T)
    torch.testing.assert_close(result.weight_T, torch.tensor(weights, dtype=torch.float64))
    assert result.is_bounded_T.tolist() == [bool(is_bounded) for is_bounded in bounded]


def test_no_tokens_have_no_weights() -> None:
    none = torch.zeros(0)
    told = OffPolicySettings("mask", "sequence", 0.5, 5.0)
    assert correct(told, none, none, torch.zeros(0, dtype=torch.int64)).weight_T.shape == (0,)


def test_a_ratio_beyond_float_range_is_bounded_and_leaves_no_nan() -> None:
    proximal_T, behaviour_T = torch.tensor([0.0, -900.0]), torch.tensor([-900.0, 0.0])
    rows_T = torch.arange(2)
    truncated = correct(OffPolicySettings("truncate", high=2.0), proximal_T, behaviour_T, rows_T)
    assert truncated.weight_T.tolist() == [2.0, 0.0]
    masked = correct(OffPolicySettings("mask", "token", 0.5, 5.0), proximal_T, behaviour_T, rows_T)
    assert masked.weight_T.tolist() == [0.0, 0.0]


CORRECTIONS = [
    OffPolicySettings(correction, level, low, high)
    for (correction, low, high), level in itertools.product(
        (("weight", None, None), ("truncate", None, 2.0), ("mask", 0.5, 5.0)), ("token", "sequence")
    )
]
BASE = AlgorithmSettings(
    "base",
    proximal="learner",
    aggregation="sequence_mean",
    clip_high=0.28,
    kl=KlSettings(0.1, "k3"),
    entropy_coef=0.01,
)


@pytest.mark.parametrize("told", CORRECTIONS, ids=str)
def test_at_ratio_one_a_correction_changes_nothing(told: OffPolicySettings) -> None:
    rows = Rows.random([4, 2, 0, 6], seed=3)
    rows = dataclasses.replace(rows, proximal_T=rows.behaviour_T)
    plain, gradient = loss_and_gradient(rows, BASE, rows.update)
    weighed, weighed_gradient = loss_and_gradient(
        rows, dataclasses.replace(BASE, off_policy=told), rows.update
    )
    assert torch.equal(weighed.loss, plain.loss)
    assert torch.equal(weighed_gradient, gradient)
    # And the decoupled loss is the one that takes the engine's log-probs for the proximal ones.
    coupled, coupled_gradient = loss_and_gradient(
        rows, dataclasses.replace(BASE, proximal="behaviour"), rows.update
    )
    assert torch.equal(coupled.loss, plain.loss)
    assert torch.equal(coupled_gradient, gradient)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_masked_tokens_have_no_gradient_and_count_in_the_denominator(level: str) -> None:
    told = OffPolicySettings("mask", level, 0.5, 2.0)  # type: ignore[arg-type]
    algorithm = dataclasses.replace(BASE, kl=KlSettings(), entropy_coef=0.0, off_policy=told)
    rows = Rows.random([3, 2, 4], seed=5)
    rows.columns["keep"][:] = 1.0
    shift_T = torch.zeros(9, dtype=torch.float64)
    shift_T[3] = math.log(2.5)
    rows = dataclasses.replace(rows, proximal_T=rows.behaviour_T + shift_T)
    _, gradient = loss_and_gradient(rows, algorithm, rows.update)
    is_masked_T = torch.zeros(9, dtype=torch.bool)
    is_masked_T[3 : 4 if level == "token" else 5] = True
    assert torch.equal(gradient[is_masked_T], torch.zeros_like(gradient[is_masked_T]))
    uncorrected = dataclasses.replace(algorithm, off_policy=OffPolicySettings())
    _, expected = loss_and_gradient(rows, uncorrected, rows.update)
    assert torch.equal(gradient[~is_masked_T], expected[~is_masked_T])


def test_a_masked_token_cannot_spoil_the_gradient_of_the_others() -> None:
    told = OffPolicySettings("mask", "token", 0.5, 5.0)
    rows = Rows.random([3, 2], seed=6)
    rows.columns["keep"][:] = 1.0
    rows.columns["advantage"][:] = -1.0
    rows = dataclasses.replace(rows, proximal_T=rows.behaviour_T.clone())
    rows.proximal_T[1] = -5000.0  # current over proximal overflows, proximal over behaviour is 0
    algorithm = dataclasses.replace(BASE, off_policy=told)
    terms, gradient = loss_and_gradient(rows, algorithm, rows.update)
    assert torch.isfinite(terms.loss) and torch.isfinite(gradient).all()
    assert all(torch.isfinite(value) for value in terms.sums.values())


def test_a_correction_without_both_log_probs_is_refused() -> None:
    rows = Rows.random([2, 3], seed=9)
    algorithm = PRESETS["icepop"]
    batch = flatten(algorithm, rows.counts_R, rows.columns, rows.update, rows.behaviour_T)
    with pytest.raises(ValueError, match="not both the engine's and the learner's log-probs"):
        Objective(algorithm).loss(batch, rows.statistics())


# A bandit of 5 arms, all of them tried: the mean gradient is exact, weighed by how often the
# behaviour policy tries each.
ARMS = 5
LOGITS = torch.tensor([0.3, -0.8, 1.1, 0.0, -0.2], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.0, 0.2, -0.5, 2.0], dtype=torch.float64)
PLAIN = AlgorithmSettings(
    "bandit", advantage="reward", aggregation="sequence_sum_constant", constant_length=1
)


def mean_gradient(
    algorithm: AlgorithmSettings, behaviour: Tensor, tokens_RT: Tensor, rewards_R: Tensor
) -> Tensor:
    """The gradient that `algorithm` has in the mean over rows [R, T] drawn from `behaviour` [V],
    with the learner at LOGITS before and during the update."""
    num_rows, length = tokens_RT.shape
    logits = LOGITS.clone().requires_grad_()
    logprob_T = logits.log_softmax(-1)[tokens_RT.flatten()]
    behaviour_T = behaviour.log()[tokens_RT.flatten()]
    chance_R = behaviour_T.view(num_rows, length).sum(1).exp()
    counts_R = torch.full((num_rows,), length)
    columns = {"advantage": rewards_R, "weight": chance_R}
    batch = flatten(
        algorithm,
        counts_R,
        columns,
        denominators(counts_R, row_weight(columns)),
        behaviour_T=behaviour_T,
        proximal_T=logprob_T.detach() if algorithm.proximal == "learner" else None,
    )
    loss = Objective(algorithm).loss(batch, {"logprob": logprob_T}).loss
    return torch.autograd.grad(loss, logits)[0]


def of_tokens(
    correction: str, level: str = "token", high: float | None = None
) -> AlgorithmSettings:
    told = OffPolicySettings(correction, level, None, high)  # type: ignore[arg-type]
    return dataclasses.replace(PLAIN, proximal="learner", off_policy=told)


def stale_by(steps: int) -> Tensor:
    """The policy of which gradient ascent on the expected reward makes LOGITS in so many steps,
    within rounding: the behaviour of an engine that lags behind."""
    logits = LOGITS.clone()
    for _ in range(steps):
        chance = logits.softmax(-1)
        logits = logits - chance * (REWARDS - (chance * REWARDS).sum())
    return logits.softmax(-1)


def perturbed() -> Tensor:
    """An engine whose log-probs are off by noise."""
    noise = np.random.default_rng(0).normal(size=ARMS) * 0.3
    return (LOGITS + torch.from_numpy(noise)).softmax(-1)


BEHAVIOURS = {"stale by 1": stale_by(1), "stale by 4": stale_by(4), "perturbed": perturbed()}


@pytest.mark.parametrize("name", list(BEHAVIOURS))
def test_token_weights_take_the_bias_out_of_a_bandits_gradient(name: str) -> None:
    arms = torch.arange(ARMS)[:, None]
    chance = LOGITS.softmax(-1)
    expected = -chance * (REWARDS - (chance * REWARDS).sum())  # of minus the expected reward
    found = {
        correction: mean_gradient(of_tokens(correction), BEHAVIOURS[name], arms, REWARDS)
        for correction in ("none", "weight")
    }
    torch.testing.assert_close(found["weight"], expected, rtol=1e-12, atol=1e-14)
    bias = (found["none"] - expected).norm() / expected.norm()
    assert bias > 0.1
    truncated = mean_gradient(of_tokens("truncate", high=1.1), BEHAVIOURS[name], arms, REWARDS)
    bias_left = (truncated - expected).norm() / expected.norm()
    assert 1e-3 < bias_left < bias


def test_for_rows_of_several_tokens_only_the_sequence_weight_is_unbiased() -> None:
    """Two tries a row, and a reward for the pair: token weights leave the chance uncorrected with
    which the behaviour policy makes the other try."""
    pairs = torch.cartesian_prod(torch.arange(ARMS), torch.arange(ARMS))
    rewards_R = REWARDS[pairs].sum(1) + (pairs[:, 0] == pairs[:, 1]) * 2.0
    logits = LOGITS.clone().requires_grad_()
    chance_R = logits.log_softmax(-1)[pairs].sum(1).exp()
    (expected,) = torch.autograd.grad(-(chance_R * rewards_R).sum(), logits)
    bias = {}
    for level in ("token", "sequence"):
        found = mean_gradient(of_tokens("weight", level), stale_by(4), pairs, rewards_R)
        bias[level] = float((found - expected).norm() / expected.norm())
    found = mean_gradient(of_tokens("none"), stale_by(4), pairs, rewards_R)
    bias["none"] = float((found - expected).norm() / expected.norm())
    assert bias["sequence"] < 1e-12
    assert 1e-2 < bias["token"] < bias["none"]


def test_learning_from_a_wrong_engine_needs_the_weight() -> None:
    """Exact ascent with an engine that favours a bad arm by a factor: corrected, the learner finds
    the policy that it would have found on-policy; uncorrected, it goes elsewhere."""
    tilt = torch.tensor([0.0, 0.0, 0.0, 0.0, -2.5], dtype=torch.float64)
    arms = torch.arange(ARMS)

    def after(correction: str, is_wrong: bool) -> Tensor:
        logits = LOGITS.clone()
        told = OffPolicySettings(correction)  # type: ignore[arg-type]
        for _ in range(20):
            logits.requires_grad_()
            logprob = logits.log_softmax(-1)
            behaviour = (logits.detach() + tilt * is_wrong).softmax(-1)
            proximal = logprob.detach()
            weight = correct(told, proximal, behaviour.log(), arms).weight_T
            surrogate = behaviour * weight * REWARDS * (logprob - proximal).exp()
            (gradient,) = torch.autograd.grad(surrogate.sum(), logits)
            logits = (logits + gradient).detach()
        return logits.softmax(-1)

    on_policy = after("none", is_wrong=False)
    torch.testing.assert_close(after("weight", is_wrong=True), on_policy)
    reward = {
        name: float((policy * REWARDS).sum())
        for name, policy in (("right", on_policy), ("wrong", after("none", is_wrong=True)))
    }
    assert reward["wrong"] < reward["right"] - 0.2
