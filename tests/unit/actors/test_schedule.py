"""The learning rate ramps up, and stays or falls."""

from __future__ import annotations

import pytest

from manta.actors.backends.schedule import learning_rate
from manta.actors.backends.settings import LearnerSettings


def test_warm_up_reaches_the_base_at_its_last_step_and_stays() -> None:
    settings = LearnerSettings(warmup_steps=4)
    rates = [learning_rate(settings, 0.8, step, 6) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_without_warm_up_the_first_step_has_the_base() -> None:
    assert learning_rate(LearnerSettings(), 0.8, 0, 10) == 0.8


def test_linear_decay_would_reach_zero_after_the_last_step() -> None:
    settings = LearnerSettings(warmup_steps=2, decay="linear")
    rates = [learning_rate(settings, 0.8, step, 6) for step in range(7)]
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0])
