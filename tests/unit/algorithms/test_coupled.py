"""Coupled losses by hand, against formulas written elsewhere, and what units tell their rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from manta.algorithms.coupled import Scalars, Units, couple, row_scalars
from manta.algorithms.settings import AlgorithmSettings

DPO = AlgorithmSettings("dpo", loss="dpo", unit="pair", beta=0.1)
BRADLEY_TERRY = AlgorithmSettings("reward_model", loss="bradley_terry", unit="pair")


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pairs(*members: tuple[int, int], margins: tuple[float, ...] = ()) -> Units:
    """Pairs of rows, the preferred one first, all of one weight."""
    count = len(members)
    return Units(
        row_M=torch.tensor(members, dtype=torch.int64).flatten(),
        unit_M=torch.arange(count).repeat_interleave(2),
        label_M=double(1, 0).repeat(count),
        margin_U=double(*(margins or (0.0,) * count)),
        weight_U=torch.full((count,), 1 / count, dtype=torch.float64),
    )


def scalars(values: Tensor, reference: Tensor | None = None) -> Scalars:
    return Scalars(values, reference, torch.ones_like(values))


def test_dpo_by_hand() -> None:
    """Implicit rewards 0.1 and -0.05: -log sigmoid(0.15) = 0.62096."""
    given = scalars(double(-10, -12), double(-11, -11.5))
    found = couple(DPO, pairs((0, 1)), torch.tensor([0, 1]), given)
    assert float(found.loss_R.sum()) == pytest.approx(0.620957047789532, rel=1e-12)
    assert found.slope_R.tolist() == pytest.approx([-0.04625701546562505, 0.04625701546562505])
    figures = {name: float(values.sum()) for name, values in found.figures.items()}
    assert figures == pytest.approx(
        {"accuracy": 1.0, "margin": 0.15, "chosen": 0.1, "rejected": -0.05}
    )


def test_bradley_terry_with_a_margin_by_hand() -> None:
    """-log sigmoid(2 - 0.5 - 0.25) = 0.25193."""
    units = pairs((0, 1), margins=(0.25,))
    found = couple(BRADLEY_TERRY, units, torch.tensor([0, 1]), scalars(double(2, 0.5)))
    assert float(found.loss_R.sum()) == pytest.approx(0.251929081345373, rel=1e-12)
    assert found.slope_R.tolist() == pytest.approx([-0.22270013882530884, 0.22270013882530884])
    assert float(found.figures["margin"].sum()) == pytest.approx(1.5)


def test_dpo_is_the_sigmoid_loss_of_its_peer() -> None:
    """TRL's DPO trainer, loss type sigmoid: -logsigmoid(beta * ((chosen - rejected) of the policy -
    (chosen - rejected) of the reference)), the mean over pairs."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 12, generator=generator, dtype=torch.float64) * 20
    members = [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    found = couple(DPO, pairs(*members), torch.arange(12), scalars(policy, reference))
    own = policy.clone().requires_grad_()
    logits = (own[:6] - own[6:]) - (reference[:6] - reference[6:])
    wanted = -logsigmoid(0.1 * logits).mean()
    assert float(found.loss_R.sum()) == pytest.approx(wanted.item(), rel=1e-12)
    torch.testing.assert_close(found.slope_R, torch.autograd.grad(wanted, own)[0])
    accuracy = (logits > 0).double().mean()
    assert float(found.figures["accuracy"].sum()) == pytest.approx(accuracy.item())


def test_bradley_terry_is_the_reward_trainer_s_loss() -> None:
    """TRL's reward trainer: -logsigmoid(chosen - rejected - margin), the mean over pairs."""
    generator = torch.Generator().manual_seed(1)
    score = torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_()
    margins = (0.0, 0.5, 1.0, 2.0)
    units = pairs((0, 4), (1, 5), (2, 6), (3, 7), margins=margins)
    found = couple(BRADLEY_TERRY, units, torch.arange(8), scalars(score))
    wanted = -logsigmoid(score[:4] - score[4:] - double(*margins)).mean()
    assert float(found.loss_R.sum()) == pytest.approx(wanted.item(), rel=1e-12)
    torch.testing.assert_close(found.slope_R, torch.autograd.grad(wanted, score)[0])


def test_a_row_in_several_pairs_gets_the_sum_of_their_slopes() -> None:
    """Rows 5, 9 and 7 in any order; 9 is preferred to both others."""
    units = pairs((9, 5), (9, 7), (7, 5))
    values = double(0.3, 1.1, -0.2)
    rows = torch.tensor([5, 9, 7])
    found = couple(BRADLEY_TERRY, units, rows, scalars(values))
    low, high, middle = (value.requires_grad_() for value in values.clone())
    wanted = -(logsigmoid(high - low) + logsigmoid(high - middle) + logsigmoid(middle - low)) / 3
    slopes = torch.stack(torch.autograd.grad(wanted, (low, high, middle)))
    torch.testing.assert_close(found.slope_R, slopes)
    # Two of the losses stand at their first member 9, one at 7.
    assert (found.loss_R != 0).tolist() == [False, True, True]


def test_terms_have_the_units_value_and_their_gradient() -> None:
    """Tokens of rows of 2, 0 and 3; the sum of a row's tokens is its scalar."""
    counts = torch.tensor([2, 0, 3])
    statistic = torch.tensor([0.1, 0.4, -0.3, 0.2, 0.9], requires_grad=True)
    row_T = torch.repeat_interleave(torch.arange(3), counts)
    given = row_scalars(statistic, None, counts)
    assert given.scalar_R.tolist() == pytest.approx([0.5, 0.0, 0.8])
    assert not given.scalar_R.requires_grad
    units = pairs((2, 0))
    terms = couple(BRADLEY_TERRY, units, torch.arange(3), given).terms(statistic, row_T)
    wanted = -logsigmoid(statistic[2:].sum() - statistic[:2].sum())
    assert terms.loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert float(terms.sums["loss"]) == pytest.approx(wanted.item(), rel=1e-6)
    assert float(terms.sums["pairs/accuracy"]) == 1.0
    terms.loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(statistic.grad, torch.autograd.grad(wanted, statistic)[0])


def test_units_that_are_whole_among_some_rows() -> None:
    units = pairs((0, 1), (0, 2), (3, 2), margins=(1.0, 2.0, 3.0))
    rows = torch.tensor([0, 2, 3])
    within = units.within(rows)
    assert units.touching(torch.tensor([1, 3])).tolist() == [0, 2]
    assert within.row_M.tolist() == [0, 2, 3, 2]
    assert within.unit_M.tolist() == [0, 0, 1, 1]
    assert within.margin_U.tolist() == [2.0, 3.0]
    assert within.weight_U.tolist() == pytest.approx([1 / 3] * 2)
    nothing = units.within(torch.tensor([1]))
    found = couple(BRADLEY_TERRY, nothing, torch.tensor([1]), scalars(double(4)))
    assert (found.slope_R.tolist(), found.loss_R.tolist()) == ([0.0], [0.0])


def test_dpo_without_a_reference_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="no reference log-probs: run reference workers"):
        couple(DPO, pairs((0, 1)), torch.tensor([0, 1]), scalars(double(1, 2)))


def test_scalars_that_are_not_finite_do_not_pass_for_a_loss() -> None:
    given = scalars(double(float("nan"), 1))
    found = couple(BRADLEY_TERRY, pairs((0, 1)), torch.tensor([0, 1]), given)
    assert not torch.isfinite(found.loss_R.sum())
