"""The KL coefficient that follows a target: against a loop; on all ranks the same, to the bit."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manta.algorithms.flatten import flatten
from manta.algorithms.kl_control import KlControl
from manta.algorithms.part_settings import KlSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.token_stage import token_stage
from manta.algorithms.tokens import TokenBatch
from tests.unit.algorithms.ragged import Rows, loss_and_gradient, ragged_and_split
from tests.unit.algorithms.rank_threads import on_ranks


def alone(values: Tensor) -> Tensor:
    return values


def following(target: float, gain: float = 0.1, proximal: str = "behaviour") -> AlgorithmSettings:
    kl = KlSettings(0.3, target=target, gain=gain)
    return dataclasses.replace(PRESETS["grpo"], kl=kl, proximal=proximal)  # type: ignore[arg-type]


def batch_of(rows: Rows, algorithm: AlgorithmSettings) -> TokenBatch:
    proximal_T = rows.proximal_T if algorithm.proximal == "learner" else None
    return flatten(
        algorithm,
        rows.counts_R,
        rows.columns,
        rows.update,
        rows.behaviour_T,
        proximal_T,
        rows.reference_T,
    )


def by_loop(rows: Rows, algorithm: AlgorithmSettings) -> float:
    """The mean over samples of their summed log-ratio to the reference, by row weight."""
    old_T = rows.proximal_T if algorithm.proximal == "learner" else rows.behaviour_T
    total, weights, t = 0.0, 0.0, 0
    for row, count in enumerate(rows.counts_R.tolist()):
        weight = float(rows.columns["weight"][row] * rows.columns["keep"][row])
        if weight and count:
            places = range(t, t + count)
            total += weight * sum(float(old_T[t] - rows.reference_T[t]) for t in places)
            weights += weight
        t += count
    return total / weights


@pytest.mark.parametrize("proximal", ["behaviour", "learner"])
@pytest.mark.parametrize("target", [0.05, 6.0])
def test_the_coefficient_moves_by_the_formula(target: float, proximal: str) -> None:
    algorithm = following(target, 0.1, proximal)
    control, coef = KlControl(algorithm), 0.3
    for seed in range(12):
        rows = Rows.random([5, 0, 3, 6, 1, 2], seed)
        figures = control.follow(batch_of(rows, algorithm), alone)
        measured = by_loop(rows, algorithm)
        assert figures["kl/coef"] == pytest.approx(coef, rel=1e-12)
        assert figures["kl/measured"] == pytest.approx(measured, abs=1e-5)
        coef *= 1 + 0.1 * min(max((measured - target) / target, -0.2), 0.2)
        assert control.coef == pytest.approx(coef, rel=1e-5)
        coef = control.coef


def test_the_coefficient_by_hand() -> None:
    """Two samples, of KL 1 + 2 and -1 nats: mean 1."""
    rows = Rows(
        torch.tensor([2, 1]),
        {"advantage": torch.zeros(2), "keep": torch.ones(2)},
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, 7),
        behaviour_T=torch.tensor([-1.0, -1.0, -3.0]),
        proximal_T=torch.zeros(3),
        reference_T=torch.tensor([-2.0, -3.0, -2.0]),
    )
    # Error 1 / target - 1: 0, beyond 0.2, beyond -0.2, and 1/9
    for target, factor in ((1.0, 1.0), (0.1, 1.1), (10.0, 0.9), (0.9, 1 + 0.5 / 9)):
        control = KlControl(following(target, gain=0.5))
        figures = control.follow(batch_of(rows, following(target)), alone)
        assert figures == {"kl/coef": 0.3, "kl/measured": 1.0}
        assert control.coef == pytest.approx(0.3 * factor, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(ragged_and_split(), st.integers(0, 2**16))
def test_ranks_agree_to_the_bit_however_rows_are_dealt(
    shape: tuple[list[int], list[list[int]]], seed: int
) -> None:
    counts, parts = shape
    rows = Rows.random(counts, seed)
    algorithm = following(1.0)

    def work(part: list[int], total: AllReduce) -> tuple[dict[str, float], float]:
        control = KlControl(algorithm)
        return control.follow(batch_of(rows.take(part), algorithm), total), control.coef

    [whole] = on_ranks([list(range(len(counts)))], work)
    assert on_ranks(parts, work) == [whole] * len(parts)


def test_what_moves_no_coefficient() -> None:
    rows = Rows.random([5, 3], seed=0)
    rows.columns.update(keep=torch.ones(2).double())
    algorithm = following(1.0)
    frozen = KlControl(algorithm)
    figures = frozen.follow(batch_of(rows, algorithm), alone, is_policy_frozen=True)
    assert frozen.coef == 0.3 and figures["kl/measured"] != 0
    rows.columns["keep"][:] = 0.0
    idle = KlControl(algorithm)
    assert idle.follow(batch_of(rows, algorithm), alone) == {"kl/coef": 0.3}
    assert idle.coef == 0.3
    fixed = KlControl(PRESETS["grpo"])
    assert not fixed.is_adaptive and fixed.settings is PRESETS["grpo"]
    assert fixed.follow(batch_of(rows, PRESETS["grpo"]), alone) == {}


def test_rows_that_do_not_train_may_be_infinite() -> None:
    rows = Rows.random([5, 3, 2], seed=0)
    rows.columns.update(keep=torch.tensor([1.0, 0.0, 1.0]).double())
    rows.behaviour_T[5:8] = -math.inf
    algorithm = following(1.0)
    found = KlControl(algorithm).follow(batch_of(rows, algorithm), alone)
    kept = rows.take([0, 2])
    assert found == KlControl(algorithm).follow(batch_of(kept, algorithm), alone)


def test_the_coefficient_is_charged_in_the_loss_and_in_the_reward() -> None:
    rows = Rows.random([5, 3], seed=1)
    control = KlControl(following(1.0))
    control.coef = 0.77
    fixed = dataclasses.replace(PRESETS["grpo"], kl=KlSettings(0.77))
    found, gradient = loss_and_gradient(rows, control.settings, rows.update)
    expected, expected_gradient = loss_and_gradient(rows, fixed, rows.update)
    assert found.loss == expected.loss and torch.equal(gradient, expected_gradient)

    in_reward = KlSettings(0.3, "k1", "reward", target=1.0)
    control = KlControl(dataclasses.replace(PRESETS["rloo"], kl=in_reward))
    control.coef = 0.77
    fixed = dataclasses.replace(PRESETS["rloo"], kl=KlSettings(0.77, "k1", "reward"))
    staged = [
        token_stage(algorithm, batch_of(rows, algorithm), alone).advantage_T
        for algorithm in (control.settings, fixed)
    ]
    assert torch.equal(*staged)


def test_samples_without_log_probs_are_named() -> None:
    rows = Rows.random([2, 3], seed=9)
    bare = flatten(PRESETS["grpo"], rows.counts_R, rows.columns, rows.update)
    with pytest.raises(ValueError, match=r"kl\.target needs log-probs of the sampling policy"):
        KlControl(following(1.0)).follow(bare, alone)
