"""Token weights and denominators against plain means."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.algorithms.aggregate import (
    Aggregation,
    Denominators,
    denominators,
    row_weight,
    token_weights,
)

COUNTS_R = torch.tensor([3, 0, 2, 5])
ROW_T = torch.repeat_interleave(torch.arange(4), COUNTS_R)
WEIGHT_R = torch.tensor([1.0, 1.0, 2.0, 0.0], dtype=torch.float64)


def weights(mode: Aggregation, constant_length: int = 0) -> list[float]:
    totals = denominators(COUNTS_R, WEIGHT_R)
    result = token_weights(mode, ROW_T, COUNTS_R, WEIGHT_R, *totals[:2], constant_length)
    assert result.dtype == WEIGHT_R.dtype
    return result.tolist()


def test_denominators_count_row_weights_of_rows_that_train() -> None:
    # Tokens: 3 * 1 + 2 * 2; rows: 1 + 2. Row 1 has no token, row 3 no weight.
    assert denominators(COUNTS_R, WEIGHT_R) == Denominators(total_tokens=7.0, total_rows=3.0)


def test_token_mean_by_hand() -> None:
    assert weights("token_mean") == pytest.approx([1 / 7] * 3 + [2 / 7] * 2 + [0.0] * 5)


def test_sequence_mean_by_hand() -> None:
    assert weights("sequence_mean") == pytest.approx([1 / 9] * 3 + [2 / 6] * 2 + [0.0] * 5)


def test_sequence_sum_constant_by_hand() -> None:
    assert weights("sequence_sum_constant", 10) == pytest.approx(
        [1 / 30] * 3 + [2 / 30] * 2 + [0.0] * 5
    )


@pytest.mark.parametrize("mode", get_args(Aggregation))
def test_nothing_kept_gives_zero_weights(mode: Aggregation) -> None:
    none_R = torch.zeros(4)
    result = token_weights(mode, ROW_T, COUNTS_R, none_R, *denominators(COUNTS_R, none_R)[:2], 10)
    assert result.tolist() == [0.0] * 10


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 1, 2])), min_size=1))
def test_integer_weights_are_copies_of_rows(rows: list[tuple[int, int]]) -> None:
    """The loss under weights equals plain means over a batch with each row repeated."""
    counts, repeats = np.array(rows).T
    losses = [np.random.default_rng(i).normal(size=count) for i, count in enumerate(counts)]
    copies = [x for x, n in zip(losses, repeats, strict=True) for _ in range(n) if len(x)]
    counts_R, weight_R = torch.from_numpy(counts), torch.from_numpy(repeats).double()
    row_T = torch.repeat_interleave(torch.arange(len(rows)), counts_R)
    expected = {
        "token_mean": np.mean(np.concatenate(copies)) if copies else 0.0,
        "sequence_mean": np.mean([x.mean() for x in copies]) if copies else 0.0,
        "sequence_sum_constant": np.mean([x.sum() / 12 for x in copies]) if copies else 0.0,
    }
    totals = denominators(counts_R, weight_R)
    for mode in get_args(Aggregation):
        weight_T = token_weights(mode, row_T, counts_R, weight_R, *totals[:2], 12)
        assert weight_T.numpy() @ np.concatenate(losses) == pytest.approx(expected[mode], abs=1e-12)


def test_row_weight_is_weight_times_keep() -> None:
    columns = {"weight": torch.tensor([2.0, 3.0]), "keep": torch.tensor([1.0, 0.0])}
    assert row_weight(columns).tolist() == [2.0, 0.0]
    assert row_weight({"keep": columns["keep"]}).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="`weight` or `keep`"):
        row_weight({"advantage": torch.ones(2)})


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_row_weights_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="row weights must be finite and at least 0"):
        denominators(torch.tensor([1, 1]), torch.tensor([1.0, bad]))


def test_sequence_sum_constant_needs_its_constant() -> None:
    with pytest.raises(ValueError, match="constant_length is 0"):
        weights("sequence_sum_constant", 0)
