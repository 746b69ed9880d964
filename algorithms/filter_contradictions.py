"""What must hold for the filters of an algorithm's settings.

Loads no torch. Whether the reward has the component that a filter reads is `manta.orchestrator`'s
business; other settings are `manta.algorithms.contradictions`'.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.catalogue import ADVANTAGE_KINDS, FILTER_READS
from manta.algorithms.part_settings import GROUP_FILTERS, FilterSettings
from manta.algorithms.settings import AlgorithmSettings


def filter_problems(settings: AlgorithmSettings) -> Iterator[str]:
    """What is wrong, one sentence each."""
    names = [each.name for each in settings.filters]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"filters has {name} {names.count(name)} times: once is enough"
    for told in settings.filters:
        yield from _unread_by_filter(told)
    if "zero_variance" in names and settings.rows_per_prompt == 1:
        yield (
            "the filter zero_variance would drop every group of one: set samples_per_prompt to 2 "
            "or more, or remove it"
        )
    if "zero_variance" in names and settings.advantage == "decoupled":
        yield (
            "the filter zero_variance looks at the whole reward, and advantage decoupled at each "
            "component: groups of equal rewards may teach, remove it or take accuracy_band"
        )
    for told in settings.filters:
        if told.name == "accuracy_band":
            yield from _band(settings, told)
        if told.name not in GROUP_FILTERS:
            yield from _of_samples(settings, told)


def _unread_by_filter(told: FilterSettings) -> Iterator[str]:
    usual = FilterSettings(told.name)
    for name in dict.fromkeys(name for reads in FILTER_READS.values() for name in reads):
        value = getattr(told, name)
        if value != getattr(usual, name) and name not in FILTER_READS[told.name]:
            by = [other for other, reads in FILTER_READS.items() if name in reads]
            yield (
                f"the filter {told.name} has {name} {value}, which it does not read: remove it "
                f"({' and '.join(by)} does)"
            )


def _band(settings: AlgorithmSettings, told: FilterSettings) -> Iterator[str]:
    count = max(1, settings.samples_per_prompt)
    if not 0 <= told.low <= told.high <= 1:
        yield (
            f"the filter accuracy_band keeps shares from {told.low:g} to {told.high:g}: let "
            "low and high be within 0 to 1, low the smaller one (0.2 and 0.8 in PRIME)"
        )
    elif not any(told.low <= right / count <= told.high for right in range(count + 1)):
        yield (
            f"the filter accuracy_band keeps shares from {told.low:g} to {told.high:g}, and of "
            f"{count} samples no number is such a share: widen it, or raise samples_per_prompt"
        )


def _of_samples(settings: AlgorithmSettings, told: FilterSettings) -> Iterator[str]:
    if not 2 <= told.keep < settings.samples_per_prompt:
        yield (
            f"the filter {told.name} keeps {told.keep} of samples_per_prompt "
            f"({settings.samples_per_prompt}): set keep to 2 or more, and below samples_per_prompt"
        )
    if ADVANTAGE_KINDS[settings.advantage].counts_right:
        yield (
            f"advantage {settings.advantage} goes by how many of a prompt's samples are right, and "
            f"the filter {told.name} chooses samples by reward: change one of the two"
        )
    after = settings.filters[settings.filters.index(told) + 1 :]
    if any(each.name == "accuracy_band" for each in after):
        yield (
            f"the filter accuracy_band stands after {told.name}, and would measure the samples "
            "that are chosen by reward: put it first"
        )
