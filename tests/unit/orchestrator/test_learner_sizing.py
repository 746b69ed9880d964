"""When a learner group should be followed by one of other ranks."""

from __future__ import annotations

import pytest

from manta.actors.worker_range import RankRange
from manta.orchestrator.learner_sizing import Places, wish

SIZES = RankRange(2, 4, settle_seconds=10)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (Places(staying=2, leaving=0, found=0, settled_seconds=99), ""),
        (Places(staying=2, leaving=0, found=1, settled_seconds=9), ""),
        (Places(staying=2, leaving=0, found=1, settled_seconds=10), "there is place for 3 ranks"),
        (Places(staying=2, leaving=0, found=2, settled_seconds=0), "there is place for 4 ranks"),
        (Places(staying=4, leaving=0, found=3, settled_seconds=99), ""),
    ],
    ids=["none", "more may come", "no more came", "all there may be", "enough"],
)
def test_a_group_grows_once_no_further_place_comes(seen: Places, expected: str) -> None:
    assert wish(SIZES, seen) == expected


@pytest.mark.parametrize(
    ("seen", "moves"),
    [
        (Places(staying=2, leaving=1, found=1, settled_seconds=0), True),
        (Places(staying=2, leaving=1, found=0, settled_seconds=9, seconds_left=60), False),
        (Places(staying=2, leaving=1, found=0, settled_seconds=9, seconds_left=19), True),
        (Places(staying=2, leaving=1, found=0, settled_seconds=10, seconds_left=60), True),
        (Places(staying=1, leaving=2, found=0, settled_seconds=99, seconds_left=1), False),
    ],
    ids=["places elsewhere", "they may come", "time is up", "none came", "too few would be left"],
)
def test_ranks_on_leaving_nodes_move_in_time_if_enough_are_left(seen: Places, moves: bool) -> None:
    assert wish(SIZES, seen) == ("nodes of its ranks are leaving" if moves else "")


def test_a_fixed_number_moves_only_as_a_whole() -> None:
    fixed = RankRange(2, 2)
    assert wish(fixed, Places(1, 1, 0, settled_seconds=99, seconds_left=1)) == ""
    assert wish(fixed, Places(1, 1, 1, settled_seconds=0)) != ""
    assert wish(fixed, Places(2, 0, 0, settled_seconds=99)) == ""
