"""The choice of tokens by covariance against loops, and that it is one choice for a whole step."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manta.algorithms.flatten import flatten
from manta.algorithms.part_settings import CovarianceSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.rank_sums import AllReduce, exact_sums
from manta.algorithms.settings import AlgorithmSettings, LossName
from manta.algorithms.token_choice import choose, smallest, tickets
from manta.algorithms.token_stage import token_stage
from tests.unit.algorithms.ragged import Rows, ragged_and_split
from tests.unit.algorithms.rank_threads import on_ranks


def alone(values: Tensor) -> Tensor:
    return values


def choosing(loss: LossName, **told: float) -> AlgorithmSettings:
    covariance = CovarianceSettings(**told)  # type: ignore[arg-type]
    return AlgorithmSettings("x", loss=loss, covariance=covariance)


def tickets_by_loop(seed: int, step: int, row: int, place: int) -> int:
    """SplitMix64's finaliser in whole numbers without a bound, cut to 64 bits."""

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    return mixed((row << 32 | place) ^ mixed((mixed(seed) + step) % 2**64))


def test_tickets_are_a_hash_of_seed_step_row_and_place() -> None:
    rows, counts = [7, 0, 123456, 3], [3, 1, 0, 2]
    found = tickets(11, 40, torch.tensor(rows), torch.tensor(counts)).tolist()
    wanted = [
        tickets_by_loop(11, 40, row, place)
        for row, count in zip(rows, counts, strict=True)
        for place in range(count)
    ]
    assert [ticket % 2**64 for ticket in found] == wanted
    others = [
        tickets(*told, torch.tensor(rows), torch.tensor(counts)) for told in ((12, 40), (11, 41))
    ]
    assert all(set(other.tolist()).isdisjoint(found) for other in others)


def test_the_tickets_of_a_large_step_are_all_different() -> None:
    found = tickets(0, 1, torch.arange(500), torch.full((500,), 400))
    assert len(found.unique()) == 200_000
    # Each bit is set in about half of them
    for bit in range(64):
        assert int(((found >> bit) & 1).sum()) == pytest.approx(100_000, abs=1500)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), max_size=30), st.integers(1, 4))
def test_exact_sums_are_the_same_to_the_bit_however_values_are_dealt(
    values: list[float], size: int
) -> None:
    column = torch.tensor(values, dtype=torch.float64)
    [whole] = exact_sums([column], alone)
    parts = [column[rank::size] for rank in range(size)]
    assert on_ranks(parts, lambda part, total: exact_sums([part], total)) == [[whole]] * size
    assert whole == pytest.approx(math.fsum(values), abs=len(values) * 2**-24)


def test_exact_sums_bound_what_is_not_a_usual_number() -> None:
    strange = torch.tensor([math.inf, -math.inf, math.nan, 1e9, -0.5], dtype=torch.float64)
    assert exact_sums([strange, torch.tensor([-1.0])], alone) == [2**15 - 0.5, -1.0]
    # More than an int64 of 2^-24 could hold if they were summed over ranks in one
    assert exact_sums([torch.full((2**20,), 2.0**15)], lambda each: each * 512) == [2.0**44]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 3), max_size=25),
    st.integers(0, 30),
    st.integers(1, 4),
    st.integers(0, 2**16),
)
def test_selection_is_that_of_a_sort_with_ties_by_the_second_key(
    first: list[int], wanted: int, size: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    num = len(first)
    second = generator.permutation(num) * (2**40 + 1) - 2**43
    candidate = generator.random(num) < 0.8
    keys = [torch.tensor(first, dtype=torch.int64), torch.from_numpy(second)]
    candidate_T = torch.from_numpy(candidate)

    def unsigned(t: int) -> tuple[int, int]:
        return first[t] % 2**64, int(second[t]) % 2**64

    order = sorted(np.flatnonzero(candidate).tolist(), key=unsigned)[:wanted]
    expected = np.isin(np.arange(num), order)
    assert smallest(keys, candidate_T, wanted, alone).tolist() == expected.tolist()

    def work(rank: int, total: AllReduce) -> list[bool]:
        part = [key[rank::size] for key in keys]
        found: list[bool] = smallest(part, candidate_T[rank::size], wanted, total).tolist()
        return found

    for rank, found in enumerate(on_ranks(range(size), work)):
        assert found == expected[rank::size].tolist()


def by_loop(
    algorithm: AlgorithmSettings,
    logprobs: np.ndarray,
    advantages: np.ndarray,
    counts: np.ndarray,
    drawn: list[int],
) -> list[bool]:
    """The paper's choice, token by token."""
    told, places = algorithm.covariance, np.flatnonzero(counts).tolist()
    mean_p, mean_a = logprobs[places].mean(), advantages[places].mean()
    covariance = {t: (logprobs[t] - mean_p) * (advantages[t] - mean_a) for t in places}
    wanted = max(1, math.floor(told.share * len(places)))
    if algorithm.loss == "clip_cov":
        pool = [t for t in places if told.low <= covariance[t] <= told.high]
        chosen = sorted(pool, key=lambda t: drawn[t])[:wanted]
    else:
        chosen = sorted(places, key=lambda t: -covariance[t])[:wanted]
    return [t in chosen for t in range(len(logprobs))]


@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_the_choice_is_that_of_the_formula(loss: LossName, share: float) -> None:
    algorithm = choosing(loss, share=share, low=0.1, high=0.8)
    for seed in range(5):
        generator = np.random.default_rng(seed)
        counts_R = torch.from_numpy(generator.integers(0, 9, 12))
        num = int(counts_R.sum())
        logprobs, advantages = generator.normal(size=(2, num))
        counts = generator.random(num) < 0.8
        tickets_T = tickets(seed, 3, torch.arange(12), counts_R)
        drawn = [ticket % 2**64 for ticket in tickets_T.tolist()]
        wanted = by_loop(algorithm, logprobs, advantages, counts, drawn)
        columns = [torch.from_numpy(column) for column in (logprobs, advantages, counts)]
        found = choose(algorithm, *columns, tickets_T, alone)
        assert found.tolist() == wanted
        assert 0 < sum(wanted) < num


@settings(max_examples=40, deadline=None)
@given(ragged_and_split(), st.sampled_from(["clip_cov", "kl_cov"]), st.integers(0, 2**16))
def test_ranks_choose_as_one_process_would_ties_and_all(
    shape: tuple[list[int], list[list[int]]], loss: LossName, seed: int
) -> None:
    """Through the token stage. Few different log-probs, and a row's tokens have one advantage: most
    covariances are equal to another."""
    counts, parts = shape
    algorithm = choosing(loss, share=0.3, low=-0.2, high=0.5)
    rows = Rows.random(counts, seed)
    rows = dataclasses.replace(rows, behaviour_T=(2 * rows.behaviour_T).round() / 2)
    rows.columns["advantage"][:] = rows.columns["advantage"].round()

    def work(part: list[int], total: AllReduce) -> Tensor:
        mine = rows.take(part)
        batch = flatten(
            algorithm, mine.counts_R, mine.columns, rows.update, behaviour_T=mine.behaviour_T
        )
        drawn_T = tickets(seed, 9, torch.tensor(part, dtype=torch.int64), mine.counts_R)
        selected_T = token_stage(algorithm, batch, total, drawn_T).selected_T
        assert selected_T is not None
        return selected_T

    [whole] = on_ranks([list(range(len(counts)))], work)
    expected = dataclasses.replace(rows, selected_T=whole)
    for part, found in zip(parts, on_ranks(parts, work), strict=True):
        mine = expected.take(part).selected_T
        assert mine is not None
        assert found.tolist() == mine.tolist()
    does_not_train_T = (rows.columns["weight"] * rows.columns["keep"] == 0).repeat_interleave(
        rows.counts_R
    )
    assert not whole[does_not_train_T].any()


def test_clip_cov_draws_each_of_the_tokens_between_its_bounds_equally_often() -> None:
    algorithm = choosing("clip_cov", share=0.2, low=0.5, high=10)
    logprob_T = torch.tensor([-1.0, 1.0] * 10, dtype=torch.float64)
    advantage_T = torch.tensor([-1.0, 1.0] * 5 + [1.0, -1.0] * 5, dtype=torch.float64)
    everything_T = torch.ones(20, dtype=torch.bool)
    drawn: Counter[int] = Counter()
    for step in range(1000):
        tickets_T = tickets(5, step, torch.arange(20), torch.ones(20, dtype=torch.int64))
        found = choose(algorithm, logprob_T, advantage_T, everything_T, tickets_T, alone)
        drawn.update(found.nonzero().flatten().tolist())
    # Four of the ten tokens of covariance 1, in each of 1,000 steps: 400 each, deviation 15
    assert set(drawn) == set(range(10))
    assert all(number == pytest.approx(400, abs=62) for number in drawn.values())
    assert drawn.total() == 4000


def test_infinite_log_probs_and_tokens_that_do_not_count_take_no_part() -> None:
    algorithm = choosing("kl_cov", share=0.5)
    logprob_T = torch.tensor([-math.inf, -1.0, -2.0, -3.0, -1e4])
    advantage_T = torch.tensor([1.0, 1.0, -1.0, math.nan, -1e4])
    counts_T = torch.tensor([True, True, True, True, False])
    tickets_T = tickets(0, 0, torch.arange(5), torch.ones(5, dtype=torch.int64))
    # Of the two that are left one has to go, and both have a covariance of 0.5
    found = choose(algorithm, logprob_T, advantage_T, counts_T, tickets_T, alone)
    first = 1 if int(tickets_T[1]) % 2**64 < int(tickets_T[2]) % 2**64 else 2
    assert found.nonzero().flatten().tolist() == [first]
    nothing_T = torch.zeros(5, dtype=torch.bool)
    assert not choose(algorithm, logprob_T, advantage_T, nothing_T, tickets_T, alone).any()
    narrow = choosing("clip_cov", share=1.0, low=7, high=8)
    assert not choose(narrow, logprob_T, advantage_T, counts_T, tickets_T, alone).any()


def test_the_learner_s_log_probs_at_the_start_of_the_step_count_where_there_are_some() -> None:
    algorithm = choosing("kl_cov", share=0.1)
    rows = Rows.random([6, 5, 4], seed=1)
    rows.columns.update(weight=torch.ones(3).double(), keep=torch.ones(3).double())
    tickets_T = tickets(0, 0, torch.arange(3), rows.counts_R)
    found = []
    for logprob_T in (rows.behaviour_T, rows.proximal_T):
        batch = flatten(algorithm, rows.counts_R, rows.columns, rows.update, rows.behaviour_T)
        if logprob_T is rows.proximal_T:
            batch = dataclasses.replace(batch, proximal_T=logprob_T)
        staged = token_stage(algorithm, batch, alone, tickets_T)
        assert staged.selected_T is not None
        wanted = by_loop(
            algorithm, logprob_T.numpy(), batch.advantage_T.numpy(), np.ones(15, bool), []
        )
        assert staged.selected_T.tolist() == wanted
        found.append(wanted)
    assert found[0] != found[1]


def test_a_choice_without_log_probs_and_a_loss_without_a_choice_are_refused() -> None:
    rows = Rows.random([2, 3], seed=0)
    preset = PRESETS["kl_cov"]
    bare = flatten(preset, rows.counts_R, rows.columns, rows.update)
    with pytest.raises(ValueError, match="the loss kl_cov chooses tokens by the log-probs"):
        token_stage(preset, bare, alone)
    with pytest.raises(ValueError, match="give it what the token stage made"):
        dataclasses.replace(rows, selected_T=None).terms(preset, rows.update)
