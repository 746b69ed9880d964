"""The figures of the mismatch against numpy, however tokens are dealt to batches and ranks."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manta.algorithms.flatten import flatten
from manta.algorithms.mismatch import MismatchTally
from manta.algorithms.part_settings import OffPolicySettings
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import TokenBatch
from tests.unit.algorithms.ragged import Rows, ragged_and_split

MASK = OffPolicySettings("mask", "sequence", 0.5, 1.8)


def alone(values: Tensor) -> Tensor:
    return values


def of_rows(rows: Rows, told: OffPolicySettings, same_T: Tensor | None) -> TokenBatch:
    algorithm = AlgorithmSettings("x", proximal="learner", off_policy=told)
    return flatten(
        algorithm,
        rows.counts_R,
        rows.columns,
        rows.update,
        behaviour_T=rows.behaviour_T,
        proximal_T=rows.proximal_T,
        same_version_T=same_T,
    )


def kind_of(rows: Rows) -> Tensor:
    """Which tokens count as of the current version: by their id, so that it moves with them."""
    return rows.tokens_T % 3 != 0


def figures(rows: Rows, told: OffPolicySettings) -> dict[str, float]:
    tally = MismatchTally(told)
    tally.add(of_rows(rows, told, kind_of(rows)), rows.proximal_T)
    return tally.figures(alone, 0, 1)


def by_numpy(rows: Rows) -> dict[str, float]:
    """All but the quantiles, for the mask of whole rows."""
    difference_T = (rows.proximal_T - rows.behaviour_T).numpy()
    row_T = np.repeat(np.arange(len(rows.counts_R)), rows.counts_R.numpy())
    trains_T = (rows.columns["weight"] * rows.columns["keep"]).numpy()[row_T] > 0
    product_R = np.exp([difference_T[row_T == r].sum() for r in range(len(rows.counts_R))])
    masked_T = ~((product_R >= MASK.low) & (product_R <= MASK.high))[row_T]
    out: dict[str, float] = {}
    for name, is_kind_T in (("same_version", kind_of(rows).numpy()), ("stale", None)):
        chosen = trains_T & (~kind_of(rows).numpy() if is_kind_T is None else is_kind_T)
        d = difference_T[chosen]
        if len(d):
            ratio = np.exp(d)
            values = {
                "tokens": len(d),
                "gap_mean": np.abs(d).mean(),
                "gap_max": np.abs(d).max(),
                "kl": (ratio - 1 - d).mean(),
                "ess": ratio.sum() ** 2 / (len(d) * (ratio**2).sum()),
                "masked_share": masked_T[chosen].mean(),
            }
            out |= {f"mismatch/{name}/{what}": float(value) for what, value in values.items()}
    return out


def without_quantiles(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if "/ratio_p" not in name}


@pytest.mark.parametrize("seed", range(4))
def test_figures_match_numpy(seed: int) -> None:
    rows = Rows.random([5, 0, 3, 8, 1, 13, 2, 2], seed)
    found = figures(rows, MASK)
    assert without_quantiles(found) == pytest.approx(by_numpy(rows), rel=1e-10)
    assert len(found) == 2 * 9


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 0.3, 5.0])
def test_quantiles_are_those_of_the_ratios_within_a_bin(scale: float) -> None:
    rows = Rows.random([3000, 2000], 0)
    rows.columns["keep"][:] = 1.0
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=5000)) * scale
    rows = dataclasses.replace(rows, proximal_T=rows.behaviour_T + noise)
    found = figures(rows, OffPolicySettings())
    difference_T = (rows.proximal_T - rows.behaviour_T)[kind_of(rows)].numpy()
    for name, quantile in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
        expected = float(np.quantile(difference_T, quantile, method="inverted_cdf"))
        log_ratio = math.log(found[f"mismatch/same_version/ratio_{name}"])
        assert log_ratio == pytest.approx(expected, rel=0.02, abs=2e-9)


def test_equal_log_probs_are_no_mismatch() -> None:
    rows = Rows.random([4, 2], 1)
    rows.columns["keep"][:] = 1.0
    found = figures(dataclasses.replace(rows, proximal_T=rows.behaviour_T), OffPolicySettings())
    of_current = {n.split("/")[2]: v for n, v in found.items() if "/same_version/" in n}
    assert of_current.pop("tokens") > 0
    assert of_current == {
        **dict.fromkeys(("gap_mean", "gap_max", "kl"), 0.0),
        **dict.fromkeys(("ess", "ratio_p01", "ratio_p50", "ratio_p99"), 1.0),
    }


@settings(max_examples=40, deadline=None)
@given(ragged_and_split(), st.integers(1, 3), st.integers(0, 2**16))
def test_neither_batches_nor_ranks_change_the_figures(
    shape: tuple[list[int], list[list[int]]], world_size: int, seed: int
) -> None:
    counts, parts = shape
    rows = Rows.random(counts, seed)
    tallies = [MismatchTally(MASK) for _ in range(world_size)]
    for part, tally in zip(parts, itertools.cycle(tallies)):
        taken = rows.take(part)
        tally.add(of_rows(taken, MASK, kind_of(taken)), taken.proximal_T)
    sent: list[Tensor] = []
    for rank, tally in enumerate(tallies):
        tally.figures(lambda values: sent.append(values) or values, rank, world_size)  # type: ignore[func-returns-value]
    total = torch.stack(sent).sum(0)
    for rank, tally in enumerate(tallies):
        found = tally.figures(lambda _: total, rank, world_size)
        assert found == pytest.approx(figures(rows, MASK), rel=1e-9, abs=1e-12)


def test_what_is_not_known_or_does_not_train_is_not_counted_as_current() -> None:
    rows = Rows.random([4, 2], 2)
    rows.columns["keep"][:] = torch.tensor([1.0, 0.0])
    rows.behaviour_T[4:] = -math.inf
    tally = MismatchTally(OffPolicySettings())
    tally.add(of_rows(rows, OffPolicySettings(), None), rows.proximal_T)
    found = tally.figures(alone, 0, 1)
    assert found["mismatch/stale/tokens"] == 4
    assert math.isfinite(found["mismatch/stale/gap_max"])
    assert not any("same_version" in name for name in found)
    given_answers = dataclasses.replace(of_rows(rows, OffPolicySettings(), None), behaviour_T=None)
    nothing = MismatchTally(OffPolicySettings())
    nothing.add(given_answers, rows.proximal_T)
    assert nothing.figures(alone, 0, 1) == {}


def test_a_log_prob_that_is_not_finite_shows() -> None:
    rows = Rows.random([3], 3)
    rows.columns["keep"][:] = 1.0
    rows.proximal_T[1] = -math.inf
    tally = MismatchTally(OffPolicySettings())
    tally.add(of_rows(rows, OffPolicySettings(), None), rows.proximal_T)
    found = tally.figures(alone, 0, 1)
    assert found["mismatch/stale/gap_max"] == math.inf
    assert not found["mismatch/stale/kl"] < 1e9
    assert found["mismatch/stale/ratio_p01"] == pytest.approx(0.0, abs=1e-300)
