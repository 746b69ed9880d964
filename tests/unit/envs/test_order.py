import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.envs.sources.order import Cursor, EpochOrder
from manta.envs.sources.shuffle import Shuffle

lengths = st.integers(1, 300)
seeds = st.integers(0, 2**40)


@given(lengths, seeds, st.integers(0, 5), st.booleans())
def test_an_epoch_goes_through_every_task_once(
    length: int, seed: int, epoch: int, shuffle: bool
) -> None:
    order = EpochOrder(length, seed, shuffle)
    met = [order.index(epoch, position) for position in range(length)]
    assert sorted(met) == list(range(length))
    again = EpochOrder(length, seed, shuffle)
    assert [again.index(epoch, position) for position in reversed(range(length))] == met[::-1]


@given(seeds)
def test_epochs_and_seeds_have_orders_of_their_own(seed: int) -> None:
    order, other = EpochOrder(200, seed), EpochOrder(200, seed + 1)
    first = [order.index(0, position) for position in range(200)]
    assert first != [order.index(1, position) for position in range(200)]
    assert first != [other.index(0, position) for position in range(200)]
    assert first != list(range(200))


def test_the_order_never_changes() -> None:
    """Resumed runs rely on these numbers: a change of them breaks every checkpoint."""
    order = EpochOrder(10, seed=0)
    assert [order.index(0, position) for position in range(10)] == [5, 7, 3, 4, 6, 9, 1, 2, 8, 0]


def test_unshuffled_is_the_order_of_the_source() -> None:
    order = EpochOrder(3, seed=1, shuffle=False)
    assert [order.index(7, position) for position in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("shuffle", [True, False])
def test_places_that_are_none(shuffle: bool) -> None:
    with pytest.raises(IndexError):
        EpochOrder(3, 0, shuffle).index(0, 3)
    with pytest.raises(ValueError, match="without tasks"):
        EpochOrder(0, 0, shuffle)


def test_every_index_comes_first_about_equally_often() -> None:
    firsts = [Shuffle(5, f"key/{key}")[0] for key in range(2000)]
    counts = [firsts.count(index) for index in range(5)]
    assert all(320 < count < 480 for count in counts), counts


def test_large_shuffles_cost_nothing_to_make() -> None:
    shuffle = Shuffle(10**15, "large")
    met = {shuffle[position] for position in range(100)}
    assert len(met) == 100
    assert max(met) < 10**15


@given(lengths, st.integers(0, 2000))
def test_a_cursor_counts_positions_and_epochs(length: int, steps: int) -> None:
    cursor = Cursor()
    for _ in range(steps):
        cursor = cursor.advance(length)
    assert cursor == Cursor(*divmod(steps, length))
    assert Cursor.from_state(json.loads(json.dumps(cursor.state()))) == cursor
