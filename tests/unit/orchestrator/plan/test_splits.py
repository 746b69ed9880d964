from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manta.orchestrator.plan.splits import (
    Candidate,
    Split,
    Unit,
    best_of,
    possible,
    search,
    unit_of,
)
from manta.orchestrator.simulation.predict import Prediction
from tests.unit.orchestrator import tiny_run


def took(seconds: float, staleness: float = 0.0) -> Prediction:
    return Prediction(seconds, 1.0, 1.0, 0.0, 0.0, 0.0, staleness, 0)


def anything(ranks: int) -> bool:
    return True


def test_all_devices_are_shared_out() -> None:
    found = possible(8, Unit(2, 1), False, anything, "GPUs")
    assert found == [Split(3, 2), Split(2, 4), Split(1, 6)]


def test_what_does_not_fit_a_rank_is_left_out() -> None:
    found = possible(8, Unit(1, 1), False, lambda ranks: ranks >= 4, "GPUs")
    assert [split.ranks for split in found] == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="does not fit a rank's memory"):
        possible(8, Unit(1, 1), False, lambda ranks: False, "GPUs")


def test_in_turns_both_have_all_devices() -> None:
    assert possible(8, Unit(4, 1), True, anything, "GPUs") == [Split(2, 8, True)]


@pytest.mark.parametrize(("unit", "least"), [(Unit(4, 1), 5), (Unit(1, 1), 2)])
def test_too_few_devices_are_told(unit: Unit, least: int) -> None:
    with pytest.raises(ValueError, match=f"{least} in all"):
        possible(least - 1, unit, False, anything, "GPUs")


@pytest.mark.parametrize("best", [1, 37, 200, 400, 511])
def test_the_search_finds_the_best_of_many(best: int) -> None:
    splits = possible(512, Unit(1, 1), False, anything, "GPUs")
    looks: list[Split] = []

    def look(split: Split) -> Prediction:
        looks.append(split)
        return took(1.0 + abs(split.engines - best) / 100)

    found = best_of(search(splits, look))
    assert len(looks) <= 12 and len(set(looks)) == len(looks)
    assert abs(found.split.engines - best) <= 12


def test_few_splits_are_all_looked_at() -> None:
    splits = possible(8, Unit(1, 1), False, anything, "GPUs")
    assert [each.split for each in search(splits, lambda split: took(1.0))] == splits


def test_among_equals_the_less_stale_one_is_best() -> None:
    stale, fresh = Candidate(Split(1, 7), took(1.0, 2.0)), Candidate(Split(2, 6), took(1.005, 1.0))
    assert best_of([stale, fresh]) is fresh
    assert best_of([stale, Candidate(Split(2, 6), took(1.1, 0.0))]) is stale


def test_what_a_worker_takes(tmp_path: Path) -> None:
    loaded = tiny_run.load(tmp_path)
    assert unit_of(loaded, on_cpus=True) == Unit(1, 1)
    rollout = replace(loaded.rollout, threads=3)
    assert unit_of(replace(loaded, rollout=rollout), on_cpus=True) == Unit(3, 1)
    wide = replace(loaded.rollout, engine="vllm", vllm=replace(rollout.vllm, tensor_parallel=4))
    assert unit_of(replace(loaded, rollout=wide), on_cpus=False) == Unit(4, 1)
