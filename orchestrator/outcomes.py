"""What a step's groups came to: how often they are right, and what the filters left out.

Over all groups that the step took, also those that were filtered while it was collected: they were
sampled like the others, and without them the figures would be those of the tasks that still teach.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from manta.algorithms.catalogue import FILTER_READS
from manta.algorithms.filters import RIGHT, Selection
from manta.algorithms.part_settings import GROUP_FILTERS
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import GroupSummary
from manta.orchestrator.assemble import selection
from manta.orchestrator.metrics import ZERO_VARIANCE
from manta.orchestrator.step_groups import LeftOut

PASS_AT_1: Final = "pass_at/1"
FILTERED_SHARE: Final = "groups/filtered_share"
ALL_RIGHT: Final = "groups/all_right_share"
ALL_WRONG: Final = "groups/all_wrong_share"


def outcome_metrics(
    groups: Sequence[GroupSummary],
    left_out: Sequence[LeftOut],
    right: str | None,
    algorithm: AlgorithmSettings | None,
) -> dict[str, float]:
    """Of the step that trained on `groups`. A sample is right where its component `right` is above
    0.5; those without it do not count. A mean over nothing is left out.

    `pass_at/K` for K = 1, 2, 4, ...: the mean over groups of at least K samples of `1 - C(n - c, K)
    / C(n, K)`, c of n being right, the unbiased estimate of the probability that one of K samples
    is (Chen et al., arXiv 2107.03374, eq. 1). Shares of groups are of those with two samples or
    more. `groups/filtered/NAME` and `samples/filtered/NAME` count what the filter left out.
    """
    taken = [*groups, *(each.summary for each in left_out)]
    metrics = _variance(taken)
    if right is not None:
        metrics |= _right(taken, right)
    if algorithm is not None and algorithm.samples_from == "policy":
        metrics |= _filtered(groups, left_out, algorithm)
    return metrics


def _variance(taken: Sequence[GroupSummary]) -> dict[str, float]:
    scored = [each.rewards[~np.isnan(each.rewards)] for each in taken]
    flat = [bool((rewards == rewards[0]).all()) for rewards in scored if len(rewards) > 1]
    return {ZERO_VARIANCE: sum(flat) / len(flat)} if flat else {}


def pass_at(groups: Sequence[GroupSummary], right: str) -> dict[str, float]:
    """`pass_at/K`, as of `outcome_metrics`."""
    return _pass_at_each(_counts(groups, right))


def _counts(groups: Sequence[GroupSummary], right: str) -> Counter[tuple[int, int]]:
    """How many groups have so many samples with the component, and so many right ones."""
    counts: Counter[tuple[int, int]] = Counter()
    for group in groups:
        values = group.components.get(right)
        if values is not None:
            # NaN is above nothing
            counts[int((~np.isnan(values)).sum()), int((values > RIGHT).sum())] += 1
    return counts


def _pass_at_each(counts: Counter[tuple[int, int]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    k, largest = 1, max((num for num, _ in counts), default=0)
    while k <= largest:
        found = [
            (times, _pass_at(k, num, good)) for (num, good), times in counts.items() if num >= k
        ]
        metrics[f"pass_at/{k}"] = sum(t * p for t, p in found) / sum(t for t, _ in found)
        k *= 2
    return metrics


def _right(taken: Sequence[GroupSummary], right: str) -> dict[str, float]:
    counts = _counts(taken, right)
    metrics = _pass_at_each(counts)
    several = {each: times for each, times in counts.items() if each[0] > 1}
    if total := sum(several.values()):
        metrics[ALL_RIGHT] = sum(t for (num, good), t in several.items() if good == num) / total
        metrics[ALL_WRONG] = sum(t for (_, good), t in several.items() if not good) / total
    return metrics


@lru_cache(maxsize=1 << 14)
def _pass_at(k: int, num: int, right: int) -> float:
    return 1.0 - math.comb(num - right, k) / math.comb(num, k)


def _filtered(
    groups: Sequence[GroupSummary], left_out: Sequence[LeftOut], algorithm: AlgorithmSettings
) -> dict[str, float]:
    """Nothing where nothing filters."""
    found: list[Selection] = [Selection((), each.reason) for each in left_out]
    if algorithm.filters:
        found += [selection(algorithm, each) for each in groups]
    names = [each.name for each in algorithm.filters]
    dropped = Counter(each.dropped_by for each in found if each.dropped_by)
    metrics = {
        f"groups/filtered/{name}": float(dropped[name])
        for name in dict.fromkeys([*names, *sorted(dropped)])
        if name not in FILTER_READS or name in GROUP_FILTERS
    }
    if metrics:
        total = len(groups) + len(left_out)
        metrics[FILTERED_SHARE] = dropped.total() / max(1, total)
    for name in names:
        if name not in GROUP_FILTERS:
            count = sum(each.left_out.get(name, 0) for each in found)
            metrics[f"samples/filtered/{name}"] = float(count)
    return metrics
