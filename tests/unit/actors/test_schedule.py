"""The learning rate ramps up, and stays or falls."""

from __future__ import annotations

import pytest

from manta.actors.backends.schedule import Schedule


def test_warm_up_reaches_the_peak_at_its_last_step_and_stays() -> None:
    schedule = Schedule(0.8, warmup_steps=4)
    rates = [schedule.at(step, 6) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert Schedule(0.8).at(0, 10) == 0.8


def test_linear_decay_would_reach_zero_after_the_last_step() -> None:
    schedule = Schedule(0.8, warmup_steps=2, decay="linear")
    rates = [schedule.at(step, 6) for step in range(7)]
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0])
