from __future__ import annotations

import numpy as np
import pytest

from manta.actors.engines.settings import CapSettings
from manta.orchestrator.length_cap import NEW_SHARE, LengthCap


def test_a_fixed_cap_stands_from_the_start() -> None:
    cap = LengthCap(CapSettings(tokens=100), 256)
    assert cap.tokens == 100
    cap.note([1, 2, 3])
    cap.turn()
    assert cap.tokens == 100


def test_a_cap_of_medians_follows_the_steps_and_moves_between_them_only() -> None:
    cap = LengthCap(CapSettings(medians=3), 256)
    cap.turn()
    assert (cap.tokens, cap.median) == (256, None)
    cap.note([10, 20])
    cap.note([30])
    assert cap.tokens == 256
    cap.turn()
    assert (cap.tokens, cap.median) == (60, 20.0)
    cap.note([40, 40, 400])
    cap.turn()
    assert cap.median == pytest.approx((1 - NEW_SHARE) * 20 + NEW_SHARE * 40)
    assert cap.tokens == 75
    again = LengthCap(CapSettings(medians=3), 256, cap.median)
    assert again.tokens == 75, "a resumed run goes on under the same cap"


def test_it_stays_between_one_and_the_most() -> None:
    assert LengthCap(CapSettings(medians=50), 256, 100.0).tokens == 256
    assert LengthCap(CapSettings(medians=1.5), 256, 0.1).tokens == 1


def test_what_it_cuts_does_not_pull_it_down() -> None:
    """Lengths that are cut at the cap, and grow: the cap grows with them."""
    generator = np.random.default_rng(0)
    cap = LengthCap(CapSettings(medians=4), 10_000)
    tokens = []
    for step in range(40):
        drawn = generator.lognormal(np.log(16 * 1.05**step), 1.0, 256)
        cap.note(np.minimum(drawn, cap.tokens).astype(int).tolist())
        cap.turn()
        tokens.append(cap.tokens)
    assert tokens[-1] > 4 * tokens[0]
    assert 0.8 < tokens[-1] / (4 * 16 * 1.05**39) < 1.1
