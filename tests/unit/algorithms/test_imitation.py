"""Which rows are imitated and how much each counts, against plain loops."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from manta.algorithms.flatten import flatten
from manta.algorithms.group_stage import NONE_KEPT, group_stage
from manta.algorithms.objective import Objective
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.hindsight import class_of
from tests.unit.algorithms.ragged import Rows

COUNTS = [5, 0, 3, 6, 1, 2, 4, 4]
GROUPS = torch.tensor([2, 2, 2, 2, 7, 7, 9, 9])
REWARDS = torch.tensor([0.5, 2.0, 1.0, 1.0, -0.5, -1.0, 0.0, 1.0])


def changed(name: str, **changes: object) -> AlgorithmSettings:
    return dataclasses.replace(PRESETS[name], **changes)  # type: ignore[arg-type]


CASES = {
    "raft": PRESETS["raft"],
    "the best two": changed("raft", keep_best=2),
    "rejection_sampling": PRESETS["rejection_sampling"],
    "the best, if above": changed("raft", keep_above=0.25),
    "weighted_sft": PRESETS["weighted_sft"],
    "weighted, the best two": changed("weighted_sft", keep_best=2, reward_temperature=0.4),
    "c_rlft": changed("c_rlft", reward_temperature=0.7),
    "leti": PRESETS["leti"],
    "by rows": changed("weighted_sft", aggregation="sequence_mean", reward_temperature=2.0),
}


def kept_by_loop(settings: AlgorithmSettings) -> list[int]:
    kept = []
    for group in sorted(set(GROUPS.tolist())):
        rows = [r for r in range(8) if GROUPS[r] == group and COUNTS[r] > 0]
        rows.sort(key=lambda r: (-REWARDS[r].item(), r))
        rows = rows[: settings.keep_best or None]
        bound = -math.inf if settings.keep_above is None else settings.keep_above
        kept += [r for r in rows if REWARDS[r].item() > bound]
    return sorted(kept)


def by_loop(settings: AlgorithmSettings, logprob_T: np.ndarray) -> float:
    """The weighted mean of the kept rows' negative log-likelihoods."""
    starts = [0, *np.cumsum(COUNTS).tolist()]
    top = bottom = 0.0
    for row in kept_by_loop(settings):
        temperature = settings.reward_temperature
        weight = 1.0 if temperature is None else math.exp(REWARDS[row].item() / temperature)
        tokens = -logprob_T[starts[row] : starts[row + 1]]
        is_by_row = settings.aggregation == "sequence_mean"
        top += weight * (tokens.mean() if is_by_row else tokens.sum())
        bottom += weight * (1 if is_by_row else len(tokens))
    return top / bottom


def staged(settings: AlgorithmSettings) -> Rows:
    rows = Rows.random(COUNTS, seed=5)
    stage = group_stage(settings, REWARDS, GROUPS, torch.tensor(COUNTS) > 0)
    columns = {name: column.double() for name, column in stage.coefficients.items()}
    return dataclasses.replace(rows, columns=columns)


@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradient_are_those_of_the_loop(name: str) -> None:
    settings = CASES[name]
    rows = staged(settings)
    value, gradient_T = loss_and_gradient(rows, settings)
    now_T = rows.statistics()["logprob"].numpy()
    # The plan's weights are float32
    assert value == pytest.approx(by_loop(settings, now_T), rel=1e-6)
    wanted, step = np.zeros_like(now_T), 1e-6
    for t in range(len(now_T)):
        ahead, behind = now_T.copy(), now_T.copy()
        ahead[t] += step
        behind[t] -= step
        wanted[t] = (by_loop(settings, ahead) - by_loop(settings, behind)) / (2 * step)
    np.testing.assert_allclose(gradient_T, wanted, rtol=1e-6, atol=1e-9)


def loss_and_gradient(rows: Rows, settings: AlgorithmSettings) -> tuple[float, np.ndarray]:
    """By the tokens' log-probs."""
    logprob_T = rows.statistics()["logprob"].clone().requires_grad_()
    batch = flatten(settings, rows.counts_R, rows.columns, rows.update)
    loss = Objective(settings).loss(batch, {"logprob": logprob_T}).loss
    return loss.item(), torch.autograd.grad(loss, logprob_T)[0].numpy()


def gradient(rows: Rows, settings: AlgorithmSettings) -> np.ndarray:
    return loss_and_gradient(rows, settings)[1]


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_not_kept_gets_no_gradient(name: str) -> None:
    settings = CASES[name]
    rows = staged(settings)
    gradient_T, starts = gradient(rows, settings), [0, *np.cumsum(COUNTS).tolist()]
    kept = kept_by_loop(settings)
    for row in range(8):
        share = gradient_T[starts[row] : starts[row + 1]]
        assert bool((share != 0).any()) == (row in kept)


def test_groups_of_which_nothing_is_kept_are_filtered_by_name() -> None:
    stage = group_stage(PRESETS["rejection_sampling"], REWARDS, GROUPS)
    assert stage.filtered == {7: NONE_KEPT}
    assert group_stage(PRESETS["raft"], REWARDS, GROUPS).filtered == {}
    none = torch.zeros(8, dtype=torch.bool)
    assert set(group_stage(PRESETS["raft"], REWARDS, GROUPS, none).filtered) == {2, 7, 9}


@pytest.mark.parametrize("name", list(CASES))
def test_the_order_of_samples_changes_nothing_but_for_draws(name: str) -> None:
    rewards = REWARDS + 0.01 * torch.arange(8)
    straight = group_stage(CASES[name], rewards, GROUPS).coefficients
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    permuted = group_stage(CASES[name], rewards[order], GROUPS[order]).coefficients
    for column, values in straight.items():
        torch.testing.assert_close(permuted[column], values[order])


def test_equal_rewards_of_both_classes_are_plain_imitation() -> None:
    """A class alone weighs what it weighs, and the mean of a batch knows no scale."""
    rows, plain = staged(PRESETS["weighted_sft"]), staged(PRESETS["sft"])
    equal = group_stage(PRESETS["weighted_sft"], torch.full((8,), 3.0), GROUPS)
    weight = equal.coefficients["weight"].double()
    rows = dataclasses.replace(rows, columns={**plain.columns, "weight": weight})
    found, wanted = gradient(rows, PRESETS["weighted_sft"]), gradient(plain, PRESETS["sft"])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_imitation_of_everything_reads_no_rewards() -> None:
    nan = torch.full((8,), math.nan)
    assert group_stage(PRESETS["sft"], nan, GROUPS).coefficients["keep"].tolist() == [1.0] * 8
    for name in ("raft", "rejection_sampling", "weighted_sft", "leti"):
        with pytest.raises(ValueError, match="not finite"):
            group_stage(PRESETS[name], nan, GROUPS)


def test_weights_that_would_not_be_numbers_are_refused() -> None:
    cold = changed("weighted_sft", reward_temperature=0.01)
    with pytest.raises(ValueError, match="raise reward_temperature"):
        group_stage(cold, REWARDS, GROUPS)
    # What is not imitated need not have a weight
    few = dataclasses.replace(cold, keep_above=5.0)
    assert group_stage(few, REWARDS, GROUPS).coefficients["keep"].tolist() == [0.0] * 8


@pytest.mark.parametrize("border", [0.1, 0.3, 0.6, 0.7, 0.8])
def test_a_reward_at_the_border_is_not_above_it(border: float) -> None:
    rewards, groups = torch.tensor([border, border + 0.01]), torch.tensor([0, 0])
    kept = changed("rejection_sampling", keep_above=border)
    assert group_stage(kept, rewards, groups).coefficients["keep"].tolist() == [0, 1]
    labelled = changed("kto", desirable_above=border)
    assert group_stage(labelled, rewards, groups).coefficients["label"].tolist() == [0, 1]
    assert [class_of(reward, (border,)) for reward in rewards.tolist()] == [0, 1]
