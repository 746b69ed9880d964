"""What ends a transfer that waits for somebody who died."""

from __future__ import annotations

import threading

from manta.actors.transports.patience import giving_up, patience


def test_a_block_that_takes_too_long_is_ended_from_outside() -> None:
    is_ended = threading.Event()
    with giving_up(0.01, is_ended.set):
        assert is_ended.wait(30)


def test_one_that_ends_in_time_is_left_alone() -> None:
    is_ended = threading.Event()
    with giving_up(0.2, is_ended.set):
        pass
    assert not is_ended.wait(0.4)


def test_more_bytes_may_take_longer() -> None:
    assert patience(0) == 60
    assert patience(16 * 10**9) == 60 + 160
