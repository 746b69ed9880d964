"""Filters: which groups, and which samples of a group, train.

Small functions over the scalars of one group, registered in `FILTERS` and applied in the order of
the settings, each to what the ones before have left. What each reads of its settings stands in
`manta.algorithms.catalogue`. Loads no torch. What becomes of a group that is left out is the
orchestrator's business.

| filter | what stays | source |
| --- | --- | --- |
| `zero_variance` | groups of different rewards | DAPO's dynamic sampling, arXiv 2503.14476 |
| `accuracy_band` | groups of which `low` to `high` are right | PRIME, arXiv 2502.01456 |
| `max_variance` | the `keep` samples whose rewards vary most | PODS, arXiv 2504.13818 |
| `process_consistency` | the `keep` whose way fits their answer | PROF, arXiv 2509.03403 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from manta.algorithms.part_settings import FilterSettings

RIGHT = 0.5
"""A component above it counts as right, as in evaluations."""


class GroupSamples(NamedTuple):
    """n samples of one group: `rewards` [n] and their `components` by name, [n] each, NaN where a
    sample has none. `beside` is the reward of the group's companion, if it has one."""

    rewards: Sequence[float]
    components: Mapping[str, Sequence[float]]
    beside: float | None = None

    def only(self, places: Sequence[int]) -> GroupSamples:
        """Those at `places`."""
        return GroupSamples(
            [self.rewards[place] for place in places],
            {name: [values[place] for place in places] for name, values in self.components.items()},
            self.beside,
        )


Filter: TypeAlias = Callable[[FilterSettings, GroupSamples], Sequence[int]]
"""The places of the samples that stay, ascending; none: the group does not train."""


@dataclass(frozen=True, slots=True)
class Selection:
    """`kept` are the places of the samples that train, ascending. Where there are none, `reason`
    begins with the name of the filter that left none. `left_out` are, by filter, how many samples
    left a group of which others stay."""

    kept: tuple[int, ...]
    reason: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def dropped_by(self) -> str:
        """What left the group out, by name; empty where it trains."""
        return self.reason.partition(":")[0]


def select(filters: Sequence[FilterSettings], samples: GroupSamples) -> Selection:
    """What `filters` leave of the group `samples`."""
    kept = tuple(range(len(samples.rewards)))
    left_out: dict[str, int] = {}
    for settings in filters:
        stay = FILTERS[settings.name](settings, samples)
        if not stay:
            return Selection((), f"{settings.name}: {_WORDS[settings.name](settings)}")
        if len(stay) < len(kept):
            left_out[settings.name] = len(kept) - len(stay)
            kept, samples = tuple(kept[place] for place in stay), samples.only(stay)
    return Selection(kept, left_out=left_out)


def zero_variance(settings: FilterSettings, samples: GroupSamples) -> Sequence[int]:
    """All samples, or none where their rewards, and the companion's, are equal: their advantages
    would be 0. A group of one is such a group.

    DAPO's dynamic sampling (arXiv 2503.14476, eq. 11) keeps groups of which some samples are right
    and some are not. That is the same where the reward says right and wrong and nothing else; where
    more is in it (a length's), groups that are all right stay here, and `accuracy_band` with bounds
    within 0 and 1 leaves them out."""
    rewards = [*samples.rewards, *([] if samples.beside is None else [samples.beside])]
    return range(len(samples.rewards)) if min(rewards) != max(rewards) else ()


def accuracy_band(settings: FilterSettings, samples: GroupSamples) -> Sequence[int]:
    """All samples, or none where the share of right ones is below `low` or above `high`.

    Samples without the component do not count; a group of which none has it stays, since nothing
    is known of it.
    """
    values = samples.components.get(settings.component, ())
    known = [value for value in values if not math.isnan(value)]
    everything = range(len(samples.rewards))
    if not known:
        return everything
    accuracy = sum(value > RIGHT for value in known) / len(known)
    return everything if settings.low <= accuracy <= settings.high else ()


def max_variance(settings: FilterSettings, samples: GroupSamples) -> Sequence[int]:
    """The `keep` samples whose rewards have the greatest variance; all of a group that has no more.

    They are the i highest and the `keep` - i lowest for some i (theorem of the paper), which is
    found in O(n log n). Of several such i it is the smallest; of equal rewards the first samples
    count as lower.
    """
    rewards, keep = samples.rewards, settings.keep
    count = len(rewards)
    if count <= keep:
        return range(count)
    order = sorted(range(count), key=lambda place: rewards[place])
    # Measured from the lowest, a large common offset does not eat the digits
    values = [rewards[place] - rewards[order[0]] for place in order]
    sums = [0.0, *accumulate(values)]
    squares = [0.0, *accumulate(value * value for value in values)]

    def spread(highest: int) -> float:
        low, high = keep - highest, count - highest
        total = sums[low] + sums[-1] - sums[high]
        return squares[low] + squares[-1] - squares[high] - total * total / keep

    best = max(range(keep + 1), key=spread)
    return sorted(order[: keep - best] + order[count - best :])


def process_consistency(settings: FilterSettings, samples: GroupSamples) -> Sequence[int]:
    """`keep` samples, right ones with the best way to their answer and wrong ones with the worst,
    by the component `process`; as many of both as there are, the odd one wrong. All of a group that
    has no more, or in which a sample lacks one of the two components.

    Ye et al., algorithm 1, the form that filters both sides: of n samples `k` right and `keep - k`
    wrong ones stay, which makes `k (keep - k)` greatest. Of equal values the first samples stay.
    The mean over a sample's steps, and what the paper takes off for one step or very many, is the
    component's business.
    """
    values = samples.components.get(settings.process, ())
    answers = samples.components.get(settings.component, ())
    count, keep = len(samples.rewards), settings.keep
    known = [value for value in (*values, *answers) if not math.isnan(value)]
    if count <= keep or len(known) < 2 * count:
        return range(count)
    right = [place for place in range(count) if answers[place] > RIGHT]
    wrong = [place for place in range(count) if not answers[place] > RIGHT]
    num_right = min(len(right), max(keep // 2, keep - len(wrong)))
    best = sorted(right, key=lambda place: -values[place])[:num_right]
    worst = sorted(wrong, key=lambda place: values[place])[: keep - num_right]
    return sorted(best + worst)


FILTERS: Mapping[str, Filter] = {
    "zero_variance": zero_variance,
    "accuracy_band": accuracy_band,
    "max_variance": max_variance,
    "process_consistency": process_consistency,
}

_WORDS: Mapping[str, Callable[[FilterSettings], str]] = {
    "zero_variance": lambda settings: "all rewards of the group are equal",
    "accuracy_band": lambda settings: (
        f"the share of samples that are right by '{settings.component}' is not within "
        f"{settings.low:g} to {settings.high:g}"
    ),
}
