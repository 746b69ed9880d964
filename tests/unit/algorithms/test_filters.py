"""Filters by hand, and the greatest variance against every subset there is."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.algorithms.catalogue import FILTER_READS
from manta.algorithms.filters import FILTERS, GroupSamples, select
from manta.algorithms.part_settings import FilterName, FilterSettings

ZERO = FilterSettings("zero_variance")
BAND = FilterSettings("accuracy_band")
NAN = math.nan


def most(keep: int) -> FilterSettings:
    return FilterSettings("max_variance", keep=keep)


def group(*rewards: float, **components: list[float]) -> GroupSamples:
    return GroupSamples(rewards, components)


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def test_every_filter_is_registered_under_its_name() -> None:
    assert set(FILTERS) == set(FILTER_READS) == set(get_args(FilterName))


def test_equal_rewards_leave_no_sample() -> None:
    assert select((ZERO,), group(0.5, 0.5, 0.6)).kept == (0, 1, 2)
    for equal in (group(0.5, 0.5), group(7.0)):
        found = select((ZERO,), equal)
        assert (found.kept, found.dropped_by) == ((), "zero_variance")
        assert found.reason == "zero_variance: all rewards of the group are equal"


@pytest.mark.parametrize(
    ("right", "count", "stays"),
    [(0, 5, False), (1, 5, True), (2, 10, True), (1, 10, False), (4, 5, True), (9, 10, False)],
)
def test_the_band_holds_its_borders(right: int, count: int, stays: bool) -> None:
    correct = [1.0] * right + [0.5] * (count - right)
    found = select((BAND,), group(*[0.0] * count, correct=correct))
    assert found.kept == (tuple(range(count)) if stays else ())
    assert (found.dropped_by == "accuracy_band") is not stays


def test_samples_without_the_component_do_not_count() -> None:
    assert select((BAND,), group(0, 0, 0, correct=[1.0, NAN, 1.0])).kept == ()
    assert select((BAND,), group(0, 0, 0, correct=[1.0, NAN, 0.0])).kept == (0, 1, 2)
    for unknown in (group(0, 0), group(0, 0, correct=[NAN, NAN])):
        assert select((BAND,), unknown).kept == (0, 1)


def test_the_most_different_rewards_by_hand() -> None:
    assert select((most(2),), group(3.0, 9.0, 7.0, 0.0)).kept == (1, 3)
    assert select((most(3),), group(0.0, 10.0, 9.0, 5.0)).kept == (0, 1, 2)
    # Two of four right ones, and both wrong ones
    assert select((most(4),), group(1.0, 1.0, 0.0, 1.0, 0.0, 1.0)).kept == (0, 1, 2, 4)
    whole = select((most(4),), group(1.0, 0.0, 0.0))
    assert (whole.kept, whole.left_out) == ((0, 1, 2), {})


@given(st.lists(st.integers(-4, 4), min_size=3, max_size=9), st.integers(2, 6))
def test_no_other_samples_vary_more(rewards: list[int], keep: int) -> None:
    found = select((most(keep),), group(*rewards)).kept
    assert len(found) == len(set(found)) == min(keep, len(rewards))
    best = max(
        variance([float(rewards[i]) for i in chosen])
        for chosen in itertools.combinations(range(len(rewards)), len(found))
    )
    assert variance([float(rewards[i]) for i in found]) == pytest.approx(best)


def consistent(keep: int) -> FilterSettings:
    return FilterSettings("process_consistency", keep=keep)


def test_the_best_ways_to_right_answers_and_the_worst_to_wrong_ones_by_hand() -> None:
    process = [0.1, 0.9, 0.5, 0.8, 0.2, 0.7]
    samples = group(1, 1, 1, 0, 0, 0, correct=[1, 1, 1, 0, 0, 0], process=process)
    assert select((consistent(4),), samples).kept == (1, 2, 4, 5)
    # An odd one is wrong; where there are too few of one kind the others make up for it
    assert select((consistent(3),), samples).kept == (1, 4, 5)
    rare = group(1, 0, 0, 0, 0, 0, correct=[1, 0, 0, 0, 0, 0], process=process)
    found = select((consistent(4),), rare)
    assert (found.kept, found.left_out) == ((0, 2, 4, 5), {"process_consistency": 2})
    alike = group(1, 1, 1, 1, correct=[1] * 4, process=[0.2, 0.3, 0.3, 0.3])
    assert select((consistent(2),), alike).kept == (1, 2)


def test_what_little_is_known_of_leaves_a_group_as_it_is() -> None:
    whole = (0, 1, 2)
    for parts in ({}, {"correct": [1, 0, 1]}, {"correct": [1, 0, 1], "process": [1, NAN, 0]}):
        assert select((consistent(2),), group(1, 0, 1, **parts)).kept == whole  # type: ignore[arg-type]
    few = group(1, 0, 1, correct=[1, 0, 1], process=[1, 1, 0])
    assert select((consistent(3),), few).kept == whole


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=3, max_size=9), st.data())
def test_the_removed_are_as_many_as_the_paper_counts(
    rows: list[tuple[bool, int]], data: st.DataObject
) -> None:
    """`min(n - m, ceil((n+ - n- + n - m) / 2))` right ones go, no less than 0 and no more than
    there are, the others are wrong."""
    keep = data.draw(st.integers(2, len(rows)))
    right = [float(is_right) for is_right, _ in rows]
    process = [float(value) for _, value in rows]
    kept = select((consistent(keep),), group(*right, correct=right, process=process)).kept
    num, num_right = len(rows), int(sum(right))
    surplus = math.ceil((2 * num_right - num + num - keep) / 2)
    removed = max(0, min(num - keep, surplus, num_right))
    assert sum(right[place] for place in kept) == num_right - removed
    assert len(kept) == keep
    for side, sign in ((1.0, 1), (0.0, -1)):
        stay = [sign * process[i] for i in kept if right[i] == side]
        go = [sign * process[i] for i in range(num) if i not in kept and right[i] == side]
        assert not stay or not go or min(stay) >= max(go)


def test_a_large_common_offset_changes_nothing() -> None:
    rewards = (0.25, 0.75, 0.5, 0.0)
    far = [reward + 2.0**30 for reward in rewards]
    assert select((most(2),), group(*far)).kept == select((most(2),), group(*rewards)).kept


def test_filters_take_what_the_ones_before_have_left() -> None:
    samples = group(1, 1, 0, 1, 0, 1, correct=[1, 1, 0, 1, 0, 1])
    found = select((FilterSettings("accuracy_band", high=0.7), most(4)), samples)
    assert (found.kept, found.left_out) == ((0, 1, 2, 4), {"max_variance": 2})
    assert select((most(4), most(2)), samples).kept == (1, 2)
    flat = select((most(2), ZERO), group(1, 1, 1))
    assert (flat.kept, flat.dropped_by) == ((), "zero_variance")
    assert select((), samples).kept == tuple(range(6))
