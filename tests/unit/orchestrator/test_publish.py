"""Publishing to scripted engines: each has a list of what goes wrong, one entry a delivery."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import ray

from manta.actors.engines.occupancy import RowSeconds
from manta.actors.mailbox import StepReport
from manta.actors.weights import Receipt
from manta.envs.records import Float32, Int32, Update, WeightVersion
from manta.orchestrator.publish import NoEngineLeft, Publisher, largest_gap, probe_rows
from manta.orchestrator.wait import Waits

VERSION = WeightVersion(3, 1)
PROBE = probe_rows(vocab_size=50, context=24)
LEARNER = tuple(-np.arange(len(row), dtype=np.float32) for row in PROBE)


class ScriptedRollout:
    """`faults[engine]` holds one fault a delivery: a wrong `hash`, a wrong `version`, `death` at
    load, or a number that is added to one log-prob; what is not scripted is right."""

    def __init__(self, faults: dict[str, list[str | float]]) -> None:
        self._names = list(faults)
        self.events: list[str] = []
        self._faults = {name: iter(scripted) for name, scripted in faults.items()}
        self._now: dict[str, str | float] = {}

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def of(self, name: str) -> list[str]:
        return [event.split()[1] for event in self.events if event.startswith(f"{name} ")]

    async def pause(self, name: str) -> RowSeconds:
        self.events.append(f"{name} pause")
        return RowSeconds(1.0, 4.0)

    async def load(self, name: str, weights: str) -> Receipt:
        assert weights == f"weights {VERSION}"
        self.events.append(f"{name} load")
        self._now[name] = fault = next(self._faults[name], 0.0)
        if fault == "death":
            raise ray.exceptions.ActorDiedError()
        version = WeightVersion(2, 1) if fault == "version" else VERSION
        return Receipt(version, "other" if fault == "hash" else "hash")

    async def logprobs(self, name: str, rows: Sequence[Int32]) -> list[Float32]:
        fault = self._now[name]
        found = [row.copy() for row in LEARNER]
        found[-1][2] += fault if isinstance(fault, float) else 0.0
        return found

    async def resume(self, name: str) -> None:
        self.events.append(f"{name} resume")

    async def serve(self, name: str) -> None:
        self.events.append(f"{name} serve")

    async def retire(self, name: str) -> None:
        self.events.append(f"{name} retire")
        self._names.remove(name)


class Client:
    def weights(self, version: WeightVersion) -> str:
        return f"weights {version}"


def publisher_of(**faults: list[str | float]) -> tuple[Publisher, ScriptedRollout]:
    rollout = ScriptedRollout(faults)
    publisher = Publisher(rollout, Client(), PROBE, 1e-3, Waits(), 10.0)  # type: ignore[arg-type]
    return publisher, rollout


REPORT = StepReport(Update(VERSION, {}, "hash"), LEARNER, {})


async def test_engines_that_prove_it_serve() -> None:
    publisher, rollout = publisher_of(a=[], b=[5e-4])
    published = await publisher.publish(REPORT)
    assert published.version == VERSION
    assert published.probe_gap == pytest.approx(5e-4, rel=0.01)
    assert published.retired == ()
    for name in ("a", "b"):
        assert rollout.of(name) == ["pause", "load", "resume", "serve"]
    await publisher.publish(REPORT)
    assert rollout.of("a")[4:] == ["pause", "load", "resume", "serve"]


@pytest.mark.parametrize("fault", ["hash", "version", 0.1, float("nan"), float("inf")])
async def test_a_mismatch_sends_again_and_a_second_one_retires_by_name(fault: str | float) -> None:
    publisher, rollout = publisher_of(good=[], once=[fault], twice=[fault, fault])
    published = await publisher.publish(REPORT)
    assert published.retired == ("twice",)
    assert published.probe_gap == 0.0
    assert publisher.gaps == {"good": 0.0, "once": 0.0}
    assert rollout.of("once") == ["pause", "load", "pause", "load", "resume", "serve"]
    assert rollout.of("twice") == ["pause", "load", "pause", "load", "retire"]
    assert (await publisher.publish(REPORT)).retired == ()


async def test_a_dead_engine_is_retired_and_the_others_go_on() -> None:
    publisher, rollout = publisher_of(dead=["death"], alive=[])
    published = await publisher.publish(REPORT)
    assert published.retired == ("dead",)
    assert rollout.of("dead") == ["pause", "load", "retire"]
    assert rollout.of("alive")[-1] == "serve"


async def test_no_engine_left_ends_it_with_their_names() -> None:
    publisher, _ = publisher_of(a=["hash", 0.5], b=["death"])
    with pytest.raises(NoEngineLeft, match=r"serves weights 3\.1 \(probe tolerance 0\.001\): a, b"):
        await publisher.publish(REPORT)
    with pytest.raises(NoEngineLeft, match="there is none"):
        await publisher.publish(REPORT)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_infinite_gap_in_any_row(row: int, value: float) -> None:
    ours = [np.zeros(3, np.float32), np.zeros(2, np.float32)]
    theirs = [values.copy() for values in ours]
    theirs[row][1] = value
    assert largest_gap(ours, theirs) == np.inf
    assert largest_gap(theirs, theirs) == np.inf
    assert largest_gap(ours, ours) == 0.0


def test_rows_of_other_lengths_do_not_agree() -> None:
    ours = [np.zeros(3, np.float32)]
    assert largest_gap(ours, [np.zeros(1, np.float32)]) == np.inf
    assert largest_gap(ours, []) == np.inf


def test_the_gap_is_the_largest_of_all_rows() -> None:
    ours = [np.zeros(3, np.float32), np.zeros(2, np.float32)]
    theirs = [np.array([0, -0.25, 0], np.float32), np.array([0.125, 0], np.float32)]
    assert largest_gap(ours, theirs) == 0.25


def test_probe_rows_fit_and_are_always_the_same() -> None:
    rows = probe_rows(vocab_size=10, context=12)
    assert [len(row) for row in rows] == [5, 9, 12, 12]
    assert all(row.min() >= 0 and row.max() < 10 for row in rows)
    assert all((a == b).all() for a, b in zip(rows, probe_rows(10, 12), strict=True))
