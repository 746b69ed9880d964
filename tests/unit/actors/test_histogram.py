from __future__ import annotations

import numpy as np

from manta.actors.histogram import Histogram, histogram_of


def test_finite_values_are_counted_in_bins_of_equal_width() -> None:
    found = histogram_of(np.array([0.0, 32.0, 31.5, np.nan, np.inf, 16.0]))
    assert isinstance(found, Histogram)
    assert found.edges == tuple(float(edge) for edge in range(33))
    assert (found.counts[0], found.counts[16], found.counts[31]) == (1.0, 1.0, 2.0)
    assert sum(found.counts) == 4


def test_equal_values_have_a_bin_and_nothing_has_none() -> None:
    same = histogram_of(np.full(5, 3, np.int32))
    assert same is not None and max(same.counts) == 5
    assert histogram_of(np.array([np.nan])) is None
    assert histogram_of(np.zeros(0)) is None
