"""The cluster that `async_speedup` simulates: how long samples are, and how fast they come and
train. Lengths are lognormal with a cap; training a step takes the time that the engine needs for
its tokens when no row is ever idle."""

from __future__ import annotations

import math
from statistics import NormalDist

ROWS = 64
PROMPTS = 32
SAMPLES = 8
MEDIAN = 16
SIGMA = 1.0
CAP = 16 * MEDIAN
MEDIAN_SECONDS = 0.2
TOKENS_PER_SECOND = MEDIAN / MEDIAN_SECONDS
REWARD_SECONDS = 2.0
"""Rewards of the second table take from 0 to this."""


def mean_length() -> float:
    """Of a lognormal length with the cap, in tokens."""
    normal, count = NormalDist(), 20_000
    quantiles = ((i + 0.5) / count for i in range(count))
    return sum(min(CAP, MEDIAN * math.exp(SIGMA * normal.inv_cdf(q))) for q in quantiles) / count


UPDATE_SECONDS = PROMPTS * SAMPLES / ROWS * mean_length() / TOKENS_PER_SECOND
