"""One device, two owners: the real embedded engine and the real plain backend never overlap."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.device_turns import NotYourTurn
from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.engines.registry import ENGINES
from manta.actors.engines.residence import WrongState
from manta.actors.engines.settings import EngineSettings
from manta.actors.leases import Ticket
from manta.actors.models.policy import token_logprobs
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.rollout import Renewed, RolloutWorker
from manta.actors.step_work import StepReport, StepWork
from manta.actors.transports.protocol import Parcel
from manta.actors.transports.settings import TransportSettings
from manta.actors.weight_store import WeightStore
from manta.actors.weights import Weights
from manta.envs.records import Float32, GenerateRequest, Int32, Sampling, VersionSpan, WeightVersion
from manta.envs.step_records import Update
from manta.orchestrator.probe import Tolerances, probe_rows
from manta.orchestrator.publish import NoEngineLeft, Publisher
from manta.orchestrator.shared_device import SharedDevice
from manta.orchestrator.wait import Waits
from tests.contract.test_backend import PolicyGradient
from tests.e2e.spool_worker import spool_engine
from tiny import VOCABULARY, groups_of, plan_of, tiny_model, tiny_rows

SIZES = BuildSpec(layers=2, width=16, heads=2, kv_heads=1, mlp_width=24)
MODEL = ModelSpec(build=SIZES, context=64)
TRANSPORT = TransportSettings("object_store")
PROBE = probe_rows(VOCABULARY, MODEL.context)
ROWS = tiny_rows()
PLAN = plan_of(groups_of((4, 3)))


class Learner:
    """Does on a step what a rank does, and looks at the device before it takes it. A mailbox."""

    def __init__(self, others: Callable[[], Awaitable[int]]) -> None:
        self._model = tiny_model()
        self.backend = PlainBackend(self._model, LearnerSettings(learning_rate=0.1))
        self.store = WeightStore(TRANSPORT)
        self._others = others
        self._reports: dict[int, StepReport] = {}

    async def hand_over(self, step: int) -> StepReport:
        weights = self.backend.weights(WeightVersion(step, 0))
        await self.store.put(weights)
        probe = tuple(token_logprobs(self._model, PROBE))
        self.backend.offload()
        return StepReport(Update(weights.version, {}, weights.sha256), probe, {})

    async def put(self, work: StepWork) -> None:
        assert await self._others() == 0, "the learner takes the device while an engine holds it"
        self.backend.restore()
        assert self.backend.held_bytes() > 0
        self.backend.update([ROWS], ("logprob", "entropy"), 1.0, PolicyGradient(ROWS), 0.1)
        step = work.plan.step
        unsent = StepReport(Update(WeightVersion(step, 0), {}, ""), (), {})
        self._reports[step] = await self.hand_over(step) if work.hand_over else unsent

    async def result(self, step: int) -> Mapping[int, StepReport]:
        return {0: self._reports[step]}

    def parcel(
        self, version: WeightVersion, base: str | None, afresh: bool
    ) -> asyncio.Future[Parcel]:
        """Several engines wait for the same one."""
        return asyncio.ensure_future(self.store.parcel(version, base, afresh))


class Client:
    def __init__(self, learner: Learner) -> None:
        self.parcel = learner.parcel


class Engines:
    """Real rollout workers with real engines in this process; `faults[name]` is what goes wrong in
    the next turn: `falling asleep`, `asleep` and `resume` are deaths, a `damaged` parcel comes
    damaged, a `refused` one whenever it is sent."""

    def __init__(self, names: Sequence[str], learner_bytes: Callable[[], int]) -> None:
        made = EngineSettings(threads=1, max_rows=4)
        self._workers = {
            name: RolloutWorker(made, MODEL, VOCABULARY, 0, False, TRANSPORT) for name in names
        }
        self._dead: set[str] = set()
        self._learner_bytes = learner_bytes
        self.serving: set[str] = set()
        self.faults: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        return list(self._workers)

    is_kept = False

    def take_in(self) -> list[str]:
        return self.names

    def engine(self, name: str) -> EmbeddedEngine:
        engine = self._workers[name]._engine
        assert isinstance(engine, EmbeddedEngine)
        return engine

    async def held_bytes(self) -> int:
        alive = [name for name in self._workers if name not in self._dead]
        return sum([await self.engine(name).held_bytes() for name in alive])

    def _reach(self, name: str, *deadly: str) -> RolloutWorker:
        if self.faults.get(name) in deadly and name not in self._dead:
            self._dead.add(name)
            self.engine(name).close()
        if name in self._dead:
            raise ray.exceptions.ActorDiedError()
        return self._workers[name]

    async def sleep(self, name: str) -> bool:
        self.serving.discard(name)
        try:
            await self._reach(name, "falling asleep").sleep()
        except ray.exceptions.ActorDiedError:
            return False
        return True

    async def renew(
        self, name: str, parcel: asyncio.Future[Parcel], sha256: str, probe: Sequence[Int32]
    ) -> Renewed:
        self.serving.discard(name)
        self._reach(name, "asleep")
        assert self._learner_bytes() == 0, "an engine wakes while the learner holds the device"
        arrived = await parcel
        fault = self.faults.get(name)
        if fault in ("damaged", "refused"):
            assert isinstance(arrived.body, Weights)
            data = arrived.body.data.copy()
            data[0] ^= 1
            arrived = replace(arrived, body=replace(arrived.body, data=data))
        if fault == "damaged":
            del self.faults[name]
        return await self._reach(name).renew(arrived, sha256, probe)

    async def logprobs(self, name: str, rows: Sequence[Int32]) -> list[Float32]:
        return await self._reach(name).logprobs(rows)

    async def resume(self, name: str) -> None:
        await self._reach(name, "resume").resume()

    async def serve(self, name: str) -> None:
        self.serving.add(name)

    async def retire(self, name: str) -> None:
        worker = self._workers.pop(name)
        self.serving.discard(name)
        assert isinstance(worker._engine, EmbeddedEngine)
        worker._engine.close()

    async def sampled_under(self, name: str, number: int) -> tuple[VersionSpan, ...]:
        wanted = GenerateRequest(np.array([1, 2], np.int32), (1,), (3,), Sampling())
        packed = await self._workers[name].generate(Ticket("test", number), [wanted])
        [[completion]] = packed.unpack()
        return completion.weight_versions


class Room:
    """A learner, engines beside it, and the turns that they take."""

    def __init__(self, names: Sequence[str]) -> None:
        self.learner = Learner(lambda: self.engines.held_bytes())
        self.names = names
        self._step = 0

    async def open(self) -> None:
        """The first report, then the engines, then the first publish: as a run starts."""
        report = await self.learner.hand_over(0)
        self.engines = Engines(self.names, self.learner.backend.held_bytes)
        self.device = SharedDevice(self.engines, self.learner, Waits(), 30.0)
        self.publisher = Publisher(
            self.engines,  # type: ignore[arg-type]
            Client(self.learner),  # type: ignore[arg-type]
            PROBE,
            Tolerances(1e-3, 1e-3),
            Waits(),
            30.0,
            self.device.publishing,
        )
        await self.publisher.publish(report)

    async def train(self, hand_over: bool = True) -> StepReport:
        self._step += 1
        plan = replace(PLAN, step=self._step)
        await self.device.put(StepWork("rl", plan, (), (), 0.1, hand_over))
        assert self.device.turns.owner == "learner"
        return (await self.device.result(self._step))[0]

    async def check_that_it_serves(self, report: StepReport) -> None:
        assert self.device.turns.state == "generating"
        assert self.learner.backend.held_bytes() == 0
        assert self.engines.serving == set(self.engines.names)
        for name in self.engines.names:
            spans = await self.engines.sampled_under(name, self._step)
            assert spans == (VersionSpan(0, report.update.version),)
            for row, wanted in zip(
                await self.engines.logprobs(name, PROBE), report.probe, strict=True
            ):
                np.testing.assert_allclose(row, wanted, atol=1e-4)

    async def close(self) -> None:
        for name in self.engines.names:
            self.engines.engine(name).close()


async def test_turns_alternate_and_every_one_ends_in_serving_the_newest_weights() -> None:
    room = Room(["a"])
    await room.open()
    seen = []
    for _ in range(3):
        report = await room.train()
        seen.append(report.update.weights_hash)
        assert room.learner.backend.held_bytes() == 0
        assert await room.engines.held_bytes() == 0
        await room.publisher.publish(report)
        await room.check_that_it_serves(report)
    assert len(set(seen)) == 3
    await room.close()


async def test_several_steps_without_a_publish_are_one_turn_of_the_learner() -> None:
    room = Room(["a"])
    await room.open()
    for _ in range(3):
        await room.train(hand_over=False)
        assert room.learner.backend.held_bytes() > 0
        assert await room.engines.held_bytes() == 0
    report = await room.train()
    await room.publisher.publish(report)
    await room.check_that_it_serves(report)
    await room.close()


async def test_out_of_turn_nothing_happens() -> None:
    room = Room(["a"])
    await room.open()
    report = await room.train()
    await room.publisher.publish(report)
    with pytest.raises(NotYourTurn, match="generating and belongs to the engines: 'wake'"):
        await room.publisher.publish(report)
    await room.check_that_it_serves(report)
    await room.close()


FAULTS = ("falling asleep", "asleep", "resume", "damaged", "refused")
FATAL = {"falling asleep", "asleep", "resume", "refused"}
TURNS = st.lists(
    st.tuples(st.integers(0, 1), st.dictionaries(st.sampled_from("abc"), st.sampled_from(FAULTS))),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None)
@given(TURNS)
def test_whatever_engines_suffer_the_device_has_one_owner(
    turns: list[tuple[int, dict[str, str]]],
) -> None:
    left, owner = asyncio.run(go_through(turns))
    assert owner == ("engines" if left else "unknown")


async def go_through(turns: list[tuple[int, dict[str, str]]]) -> tuple[list[str], str]:
    """The engines that are left after `turns`, and whose the device is then."""
    room = Room(["a", "b", "c"])
    await room.open()
    for unpublished, faults in turns:
        left = {n for n in room.engines.names if faults.get(n) not in FATAL}
        room.engines.faults = dict(faults)
        for _ in range(unpublished):
            await room.train(hand_over=False)
        report = await room.train()
        if not left:
            with pytest.raises(NoEngineLeft):
                await room.publisher.publish(report)
            with pytest.raises(NotYourTurn):
                await room.train()
            return room.engines.names, room.device.turns.owner
        await room.publisher.publish(report)
        assert set(room.engines.names) == left
        await room.check_that_it_serves(report)
    owner = room.device.turns.owner
    await room.close()
    return sorted(left), owner


async def test_an_engine_that_slept_wakes_to_weights_from_a_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ENGINES, "embedded", spool_engine)
    made = EngineSettings(threads=1, max_rows=4)
    worker = RolloutWorker(made, MODEL, VOCABULARY, 0, False, TRANSPORT)
    engine = worker._engine
    assert isinstance(engine, EmbeddedEngine)
    for call in (worker.open_transfer({"folder": str(tmp_path)}), worker.begin_transfer(8)):
        await worker.sleep()
        assert await engine.held_bytes() == 0
        await call
        assert await engine.held_bytes() > 0
        with pytest.raises(WrongState, match="while empty"):
            await worker.resume()
    engine.close()
