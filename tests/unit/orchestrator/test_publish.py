"""Publishing to scripted engines: each has a list of what goes wrong, one entry a delivery."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import ray

from manta.actors.engines.occupancy import RowSeconds
from manta.actors.rollout import Renewed
from manta.actors.step_work import StepReport
from manta.actors.transports.protocol import Delivery
from manta.actors.weight_store import WeightsReplaced
from manta.actors.weights import Receipt
from manta.envs.records import Float32, Int32, WeightVersion
from manta.envs.step_records import Update
from manta.orchestrator.probe import Tolerances, probe_rows
from manta.orchestrator.publish import NoEngineLeft, Publisher
from manta.orchestrator.wait import Waits

PROBE = probe_rows(vocab_size=50, context=24)
FULL, DELTA = 1000, 10


def learner_probe(step: int) -> tuple[Float32, ...]:
    """Moves by 0.5 with every step."""
    return tuple(-np.arange(len(row), dtype=np.float32) - 0.5 * step for row in PROBE)


def report_of(step: int) -> StepReport:
    return StepReport(Update(WeightVersion(step, 1), {}, f"hash{step}"), learner_probe(step), {})


class ScriptedRollout:
    """`faults[engine]` holds one fault a delivery: a wrong `hash`, a wrong `version`, a `refusal`,
    `death` at load or at `resume`, weights that were `replaced`, `stale` weights behind a right
    receipt, or a number that is added to one log-prob; what is not scripted is right."""

    def __init__(self, faults: dict[str, list[str | float]]) -> None:
        self._names = list(faults)
        self.arrived: list[str] = []
        self.is_kept = False
        self._has_arrived = asyncio.Event()
        self.events: list[str] = []
        self._faults = {name: iter(scripted) for name, scripted in faults.items()}
        self._now: dict[str, str | float] = {}
        self._step: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def take_in(self) -> list[str]:
        self._names += self.arrived
        self.arrived = []
        self._has_arrived.clear()
        return self.names

    def arrive(self, name: str, *faults: str | float) -> None:
        """An engine of that name has come up."""
        self.arrived.append(name)
        self._faults[name] = iter(faults)
        self._has_arrived.set()

    async def arrival(self) -> None:
        await self._has_arrived.wait()

    def of(self, name: str) -> list[str]:
        return [event.split()[1] for event in self.events if event.startswith(f"{name} ")]

    async def renew(
        self,
        name: str,
        parcel: tuple[WeightVersion, str | None],
        sha256: str,
        probe: Sequence[Int32],
    ) -> Renewed:
        rows = await self.pause(name)
        delivery = self._load(name, parcel)
        is_right = delivery.receipt.sha256 == sha256
        return Renewed(rows, delivery, tuple(await self.logprobs(name, probe)) if is_right else ())

    async def pause(self, name: str) -> RowSeconds:
        self.events.append(f"{name} pause")
        return RowSeconds(1.0, 4.0)

    def _load(self, name: str, parcel: tuple[WeightVersion, str | None]) -> Delivery:
        version, base = parcel
        self.events.append(f"{name} {'full' if base is None else 'delta'}")
        self._now[name] = fault = next(self._faults[name], 0.0)
        num_bytes = FULL if base is None else DELTA
        if fault == "death":
            raise ray.exceptions.ActorDiedError()
        if fault == "replaced":
            raise WeightsReplaced("gone")
        if fault == "refusal":
            return Delivery(Receipt(version, ""), num_bytes, "the file was cut")
        if fault != "stale":
            self._step[name] = version.step
        shown = version._replace(step=99) if fault == "version" else version
        sha256 = "other" if fault == "hash" else f"hash{version.step}"
        return Delivery(Receipt(shown, sha256), num_bytes)

    async def logprobs(self, name: str, rows: Sequence[Int32]) -> list[Float32]:
        fault = self._now[name]
        found = [row.copy() for row in learner_probe(self._step[name])]
        found[-1][2] += fault if isinstance(fault, float) else 0.0
        return found

    async def resume(self, name: str) -> None:
        if self._now[name] == "resume":
            raise ray.exceptions.ActorDiedError()
        self.events.append(f"{name} resume")

    async def serve(self, name: str) -> None:
        self.events.append(f"{name} serve")

    async def retire(self, name: str) -> None:
        self.events.append(f"{name} retire")
        if name in self._names:
            self._names.remove(name)


class Client:
    """Knows parcels by version and base; each is asked for once a publish."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str | None, bool]] = []

    def parcel(
        self, version: WeightVersion, base: str | None, afresh: bool
    ) -> tuple[WeightVersion, str | None]:
        self.asked.append((version.step, base, afresh))
        return version, base


def publisher_of(
    tolerances: Tolerances | None = None, **faults: list[str | float]
) -> tuple[Publisher, ScriptedRollout]:
    rollout = ScriptedRollout(faults)
    tolerances = tolerances or Tolerances(learner=1e-3, engines=1e-3)
    publisher = Publisher(rollout, Client(), PROBE, tolerances, Waits(), 10.0)  # type: ignore[arg-type]
    return publisher, rollout


async def test_engines_that_prove_it_serve() -> None:
    publisher, rollout = publisher_of(a=[], b=[5e-4])
    published = await publisher.publish(report_of(3))
    assert published.version == WeightVersion(3, 1)
    assert published.probe_gap == pytest.approx(5e-4, rel=0.01)
    assert published.engine_gap == pytest.approx(5e-4, rel=0.01)
    assert (published.retired, published.problems, published.resent) == ((), (), 0)
    assert published.rows == RowSeconds(2.0, 8.0)
    for name in ("a", "b"):
        assert rollout.of(name) == ["pause", "full", "resume", "serve"]
    await publisher.publish(report_of(4))
    assert rollout.of("a")[4:] == ["pause", "delta", "resume", "serve"]


async def test_engines_that_hold_the_same_share_one_parcel() -> None:
    rollout, client = ScriptedRollout({"a": [], "b": [], "c": []}), Client()
    tolerances = Tolerances(1e-3, 1e-3)
    publisher = Publisher(rollout, client, PROBE, tolerances, Waits(), 10.0)  # type: ignore[arg-type]
    assert (await publisher.publish(report_of(3))).num_bytes == 3 * FULL
    assert (await publisher.publish(report_of(4))).num_bytes == 3 * DELTA
    assert client.asked == [(3, None, False), (4, "hash3", False)]


async def test_what_is_sent_again_is_one_parcel_made_afresh() -> None:
    rollout, client = ScriptedRollout({"a": ["refusal"], "b": ["hash"], "c": []}), Client()
    tolerances = Tolerances(1e-3, 1e-3)
    publisher = Publisher(rollout, client, PROBE, tolerances, Waits(), 10.0)  # type: ignore[arg-type]
    assert (await publisher.publish(report_of(3))).retired == ()
    assert client.asked == [(3, None, False), (3, None, True)]


async def test_a_joiner_gets_the_weights_in_full_while_the_others_get_the_delta() -> None:
    publisher, rollout = publisher_of(a=[])
    await publisher.publish(report_of(3))
    rollout._names.append("joiner")
    rollout._faults["joiner"] = iter([])
    await publisher.publish(report_of(4))
    assert rollout.of("a")[4:] == ["pause", "delta", "resume", "serve"]
    assert rollout.of("joiner") == ["pause", "full", "resume", "serve"]
    await publisher.publish(report_of(5))
    assert rollout.of("joiner")[4:] == ["pause", "delta", "resume", "serve"]


async def test_a_joiner_proves_the_newest_weights_outside_of_a_publish() -> None:
    publisher, rollout = publisher_of(a=[])
    await publisher.publish(report_of(3))
    rollout.arrive("joiner", 5e-4)
    await publisher.welcome("joiner")
    assert rollout.of("joiner") == ["pause", "full", "resume", "serve"]
    assert publisher.gaps == {"a": 0.0, "joiner": pytest.approx(5e-4, rel=0.01)}
    assert rollout.of("a") == ["pause", "full", "resume", "serve"], "nobody else is held up"
    await publisher.publish(report_of(4))
    assert rollout.of("joiner")[4:] == ["pause", "delta", "resume", "serve"]


async def test_a_joiner_is_held_to_the_peers_that_serve() -> None:
    publisher, rollout = publisher_of(Tolerances(0.1, 1e-3), a=[0.01])
    await publisher.publish(report_of(3))
    rollout.arrive("odd", 0.05, 0.05)
    with pytest.raises(ray.exceptions.ActorDiedError):
        await publisher.welcome("odd")
    assert rollout.of("odd") == ["pause", "full", "pause", "full", "retire"]
    assert publisher.gaps == {"a": pytest.approx(0.01, rel=0.01)}


async def test_a_new_life_of_a_name_has_proved_nothing() -> None:
    publisher, rollout = publisher_of(a=[], b=[])
    await publisher.publish(report_of(3))
    rollout._names.remove("a")
    publisher.forget("a")
    rollout.arrive("a", "stale", "stale")
    rollout._step["a"] = 2
    with pytest.raises(ray.exceptions.ActorDiedError):
        await publisher.welcome("a")
    assert rollout.of("a")[4:] == ["pause", "full", "pause", "full", "retire"]
    rollout.arrive("a")
    await publisher.welcome("a")
    assert set(publisher.gaps) == {"a", "b"}


async def test_a_joiner_waits_for_the_first_publish_which_takes_it_along() -> None:
    publisher, rollout = publisher_of(a=[])
    rollout.arrive("early")
    welcome = asyncio.create_task(publisher.welcome("early"))
    await asyncio.sleep(0)
    assert rollout.events == []
    await publisher.publish(report_of(3))
    await asyncio.wait_for(welcome, 1)
    assert rollout.of("early") == ["pause", "full", "resume", "serve"], "once, and not again"


async def test_a_joiner_too_late_for_the_weights_is_taken_along_by_the_publish_that_follows() -> (
    None
):
    publisher, rollout = publisher_of(a=[])
    await publisher.publish(report_of(3))
    rollout.arrive("joiner", "replaced")
    welcome = asyncio.create_task(publisher.welcome("joiner"))
    while "joiner full" not in rollout.events:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not welcome.done()
    await publisher.publish(report_of(4))
    await asyncio.wait_for(welcome, 1)
    assert rollout.of("joiner") == ["pause", "full", "pause", "full", "resume", "serve"]


async def test_a_publish_and_a_welcome_take_turns() -> None:
    publisher, rollout = publisher_of(a=[])
    await publisher.publish(report_of(3))
    rollout.arrive("joiner")
    both = asyncio.create_task(publisher.welcome("joiner"))
    await publisher.publish(report_of(4))
    await both
    assert set(publisher.gaps) == {"a", "joiner"}
    assert rollout.of("joiner") in (
        ["pause", "full", "resume", "serve"],
        ["pause", "full", "resume", "serve", "pause", "delta", "resume", "serve"],
    )


async def test_where_all_engines_are_dead_a_publish_waits_for_those_that_replace_them() -> None:
    publisher, rollout = publisher_of(a=["death"], b=["hash", "hash"])
    rollout.is_kept = True
    publishing = asyncio.create_task(publisher.publish(report_of(3)))
    while "b retire" not in rollout.events:
        await asyncio.sleep(0)
    rollout.arrive("c", "death")
    while "c retire" not in rollout.events:
        await asyncio.sleep(0)
    rollout.arrive("d")
    published = await asyncio.wait_for(publishing, 1)
    assert published.retired == ("a", "b", "c")
    assert publisher.gaps == {"d": 0.0}


FAULTS = ["hash", "version", "refusal", "stale", 0.1, float("nan"), float("inf")]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_mismatch_sends_in_full_and_a_second_one_retires_by_name(
    fault: str | float,
) -> None:
    publisher, rollout = publisher_of(good=[], once=[0.0, fault], twice=[0.0, fault, fault])
    await publisher.publish(report_of(3))
    published = await publisher.publish(report_of(4))
    assert published.retired == ("twice",)
    assert published.resent == 2
    assert published.probe_gap == 0.0
    assert publisher.gaps == {"good": 0.0, "once": 0.0}
    assert [name for name, _ in published.problems] == ["once", "twice", "twice"]
    assert rollout.of("good")[4:] == ["pause", "delta", "resume", "serve"]
    assert rollout.of("once")[4:] == ["pause", "delta", "pause", "full", "resume", "serve"]
    assert rollout.of("twice")[4:] == ["pause", "delta", "pause", "full", "retire"]
    assert (await publisher.publish(report_of(5))).retired == ()
    assert rollout.of("once")[10:] == ["pause", "delta", "resume", "serve"]


async def test_an_engine_that_agrees_with_the_learner_but_not_with_its_peers_is_sent_again() -> (
    None
):
    """The learner computes otherwise, so its bound is wide; engines of one kind do not."""
    publisher, rollout = publisher_of(Tolerances(0.1, 1e-3), a=[0.01], odd=[0.05, 0.01], b=[0.01])
    published = await publisher.publish(report_of(3))
    assert published.retired == ()
    assert published.engine_gap == 0.0
    [(name, problem)] = published.problems
    assert name == "odd"
    assert "differ by 0.04 from engine a's, more than publish.engine_tolerance" in problem
    assert rollout.of("odd") == ["pause", "full", "pause", "full", "resume", "serve"]
    assert rollout.of("a") == ["pause", "full", "resume", "serve"]


async def test_a_dead_engine_is_retired_and_the_others_go_on() -> None:
    publisher, rollout = publisher_of(dead=["death"], late=["resume"], alive=[])
    published = await publisher.publish(report_of(3))
    assert published.retired == ("dead", "late")
    assert published.problems == (("dead", "it died"), ("late", "it died"))
    assert rollout.of("dead") == ["pause", "full", "retire"]
    assert rollout.of("late") == ["pause", "full", "retire"]
    assert rollout.of("alive")[-1] == "serve"


async def test_no_engine_left_ends_it_with_their_names() -> None:
    publisher, _ = publisher_of(a=["hash", 0.5], b=["death"])
    with pytest.raises(NoEngineLeft) as raised:
        await publisher.publish(report_of(3))
    told = str(raised.value)
    assert told.startswith("no engine proved that it serves weights 3.1: a: its receipt is for")
    assert "b: it died" in told
    assert "a: its log-probs differ by 0.5 from the learner's" in told
    with pytest.raises(NoEngineLeft, match="there is none"):
        await publisher.publish(report_of(4))
