"""What every transport promises: from outbox through the weight store to inboxes, bit-exact."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manta.actors.transports.delta import Delta
from manta.actors.transports.inbox import Inbox
from manta.actors.transports.outbox import Outbox
from manta.actors.transports.protocol import BadParcel, Delivery, Parcel, StoredFile
from manta.actors.transports.registry import TRANSPORTS, build_transport
from manta.actors.transports.settings import TransportSettings
from manta.actors.weight_store import WeightStore
from manta.actors.weights import Receipt, Weights, content_hash
from tests.unit.actors.transports.states import after, equal, first


class Engine:
    """Hashes what it is handed, as the protocol asks, and keeps a copy of what was right."""

    def __init__(self, settings: TransportSettings) -> None:
        self.inbox = Inbox(build_transport(settings))
        self.weights: Weights | None = None

    async def load(self, weights: Weights) -> Receipt:
        receipt = Receipt(weights.version, content_hash(weights.specs, weights.data))
        if receipt.sha256 == weights.sha256:
            self.weights = replace(weights, data=weights.data.copy())
        return receipt

    async def take(self, parcel: Parcel) -> Delivery:
        return await self.inbox.deliver(parcel, self.load)

    @property
    def holds(self) -> str | None:
        return None if self.weights is None else self.weights.sha256


class Side:
    """The sending side: a learner's outbox and the store behind it."""

    def __init__(self, settings: TransportSettings) -> None:
        self.settings = settings
        self.outbox = Outbox()
        self.store = WeightStore(settings)

    async def hand_over(self, weights: Weights) -> None:
        if not await self.store.put(self.outbox.content(weights)):
            assert await self.store.put(weights)

    def engine(self) -> Engine:
        return Engine(self.settings)

    async def publish(self, weights: Weights, *engines: Engine) -> list[Parcel]:
        """Brings `weights` to `engines` and proves it; the parcels that they were handed."""
        await self.hand_over(weights)
        parcels = [await self.store.parcel(weights.version, engine.holds) for engine in engines]
        deliveries = await asyncio.gather(
            *(engine.take(parcel) for engine, parcel in zip(engines, parcels, strict=True))
        )
        for engine, delivery in zip(engines, deliveries, strict=True):
            assert delivery.refusal == ""
            assert delivery.receipt == Receipt(weights.version, weights.sha256)
            assert engine.weights is not None
            assert equal(engine.weights, weights)
        return parcels


@pytest.fixture(params=sorted(TRANSPORTS))
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> TransportSettings:
    name: str = request.param
    return TransportSettings(name, str(tmp_path / "weights") if name == "disk" else None)


@pytest.fixture
def side(transport: TransportSettings) -> Side:
    return Side(transport)


async def test_the_first_version_comes_in_full_and_later_ones_as_one_shared_delta(
    side: Side,
) -> None:
    engines = [side.engine() for _ in range(3)]
    weights = first()
    parcels = await side.publish(weights, *engines)
    assert [parcel.base for parcel in parcels] == [None] * 3
    for step in (1, 2, 3):
        before, weights = weights, after(weights, step, 1e-5)
        parcels = await side.publish(weights, *engines)
        assert [parcel.base for parcel in parcels] == [before.sha256] * 3
        assert all(parcel is parcels[0] for parcel in parcels)
        assert parcels[0].num_bytes < len(weights.data) / 4


@given(
    rates=st.lists(st.sampled_from([0.0, 1e-6, 1e-5, 1e-2, 10.0]), min_size=1, max_size=5),
    joins=st.lists(st.integers(0, 5), max_size=2),
    seed=st.integers(0, 99),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_sequence_of_versions_arrives_bit_exact_at_old_and_new_engines(
    transport: TransportSettings, rates: list[float], joins: list[int], seed: int
) -> None:
    async def run() -> None:
        side = Side(transport)
        weights = first(seed=seed)
        engines = [side.engine()]
        await side.publish(weights, *engines)
        for step, rate in enumerate(rates, start=1):
            engines += [side.engine() for join in joins if join == step]
            weights = after(weights, step, rate)
            for parcel in await side.publish(weights, *engines):
                assert parcel.num_bytes <= len(weights.data) + 4096

    asyncio.run(run())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rate", [1e-6, 1e-3, 1.0, 100.0])
async def test_a_delta_is_never_larger_than_a_full_copy(
    side: Side, dtype: torch.dtype, rate: float
) -> None:
    engine = side.engine()
    weights = first(dtype)
    [full] = await side.publish(weights, engine)
    [parcel] = await side.publish(after(weights, 1, rate), engine)
    assert parcel.num_bytes <= full.num_bytes


async def test_what_does_not_compress_comes_in_full(side: Side) -> None:
    engine = side.engine()
    weights = first()
    await side.publish(weights, engine)
    data = np.random.default_rng(0).integers(0, 256, len(weights.data), np.uint8)
    version = weights.version._replace(step=1)
    other = Weights(version, weights.specs, data, content_hash(weights.specs, data))
    [parcel] = await side.publish(other, engine)
    assert parcel.base is None


async def test_a_late_joiner_gets_the_newest_snapshot_while_others_get_the_delta(
    side: Side,
) -> None:
    early = side.engine()
    weights = first()
    for step in range(4):
        weights = after(weights, step, 1e-5)
        await side.publish(weights, early)
    late = side.engine()
    await side.publish(weights := after(weights, 9, 1e-5), early)
    joined = await late.take(await side.store.parcel(weights.version, None))
    assert joined.receipt.sha256 == weights.sha256
    parcels = await side.publish(after(weights, 10, 1e-5), early, late)
    assert parcels[0] is parcels[1]
    assert parcels[0].base == weights.sha256


async def test_a_delta_from_weights_that_are_not_held_is_refused_and_full_ones_help(
    side: Side,
) -> None:
    current, absent = side.engine(), side.engine()
    weights = first()
    await side.publish(weights, current, absent)
    middle = after(weights, 1, 1e-5)
    await side.publish(middle, current)
    last = after(middle, 2, 1e-5)
    await side.publish(last, current)
    delta = await side.store.parcel(last.version, middle.sha256)
    assert delta.base == middle.sha256
    for engine in (absent, side.engine()):
        delivery = await engine.take(delta)
        assert delivery.receipt.sha256 == ""
        assert "came as a delta from" in delivery.refusal
        full = await side.store.parcel(last.version, None)
        assert (await engine.take(full)).receipt.sha256 == last.sha256
    other = await side.store.parcel(last.version, "of another history")
    assert other.base is None


def damage(parcel: Parcel, how: Callable[[bytearray], None]) -> Parcel:
    """`parcel` after its content, wherever it lies, was changed by `how`."""
    if isinstance(parcel.body, StoredFile):
        path = Path(parcel.body.path)
        octets = bytearray(path.read_bytes())
        how(octets)
        path.write_bytes(octets)
        return parcel
    body = parcel.body
    octets = bytearray((body.encoded if isinstance(body, Delta) else body.data).tobytes())
    how(octets)
    array = np.frombuffer(bytes(octets), np.uint8)
    changed = replace(body, encoded=array) if isinstance(body, Delta) else replace(body, data=array)
    return replace(parcel, body=changed)


def flip_last(octets: bytearray) -> None:
    octets[-1] ^= 0x10


def flip_first(octets: bytearray) -> None:
    octets[0] ^= 0x01


def cut(octets: bytearray) -> None:
    del octets[-1:]


def empty(octets: bytearray) -> None:
    octets.clear()


@pytest.mark.parametrize("how", [flip_last, flip_first, cut, empty], ids=lambda how: how.__name__)
async def test_a_damaged_delta_is_found_and_the_weights_in_full_help(
    side: Side, how: Callable[[bytearray], None]
) -> None:
    engine = side.engine()
    weights = first()
    await side.publish(weights, engine)
    new = after(weights, 1, 1e-5)
    await side.hand_over(new)
    delta = await side.store.parcel(new.version, weights.sha256)
    assert delta.base is not None
    delivery = await engine.take(damage(delta, how))
    assert delivery.receipt.sha256 != new.sha256
    assert engine.holds == weights.sha256
    again = await engine.take(await side.store.parcel(new.version, None))
    assert again.receipt == Receipt(new.version, new.sha256)
    [parcel] = await side.publish(after(new, 2, 1e-5), engine)
    assert parcel.base == new.sha256


@pytest.mark.parametrize("how", [flip_last, flip_first], ids=lambda how: how.__name__)
async def test_damaged_full_weights_are_found_and_no_base_for_deltas(
    side: Side, how: Callable[[bytearray], None]
) -> None:
    engine = side.engine()
    weights = first()
    await side.hand_over(weights)
    parcel = await side.store.parcel(weights.version, None)
    delivery = await engine.take(damage(parcel, how))
    assert delivery.receipt.sha256 != weights.sha256
    assert engine.holds is None
    again = await side.store.parcel(weights.version, None, afresh=True)
    assert (await engine.take(again)).receipt.sha256 == weights.sha256
    engine = side.engine()
    await engine.take(damage(await side.store.parcel(weights.version, None), how))
    new = after(weights, 1, 1e-5)
    await side.hand_over(new)
    delta = await side.store.parcel(new.version, weights.sha256)
    assert "holds nothing" in (await engine.take(delta)).refusal


async def test_a_learner_of_another_life_starts_in_full(side: Side) -> None:
    engine = side.engine()
    weights = first()
    await side.publish(weights, engine)
    reborn = after(weights, 1, 1e-5, incarnation=1)
    side.outbox = Outbox()
    [parcel] = await side.publish(reborn, engine)
    assert parcel.base is None
    [parcel] = await side.publish(after(reborn, 2, 1e-5, incarnation=1), engine)
    assert parcel.base == reborn.sha256


async def test_a_store_without_the_delta_s_base_asks_for_full_weights(side: Side) -> None:
    weights = first()
    side.outbox.content(weights)
    new = after(weights, 1, 1e-5)
    delta = side.outbox.content(new)
    assert isinstance(delta, Delta)
    assert not await side.store.put(delta)
    assert await side.store.put(new)
    engine = side.engine()
    await engine.take(await side.store.parcel(new.version, None))
    assert engine.holds == new.sha256


async def test_a_store_whose_snapshot_is_damaged_by_a_delta_takes_full_weights_next(
    side: Side,
) -> None:
    engine = side.engine()
    weights = first()
    await side.publish(weights, engine)
    new = after(weights, 1, 1e-5)
    delta = side.outbox.content(new)
    assert isinstance(delta, Delta)
    wrong = replace(delta, sha256="0" * 64)
    assert await side.store.put(wrong)
    with pytest.raises(ValueError, match=r"weights 1\.0: the weight store's snapshot is damaged"):
        await side.store.parcel(new.version, None)
    [parcel] = await side.publish(after(new, 2, 1e-5), engine)
    assert parcel.base is None


async def test_a_delta_does_not_change_what_was_received_before(side: Side) -> None:
    """Received arrays may be shared with other engines of the node, in Ray's read-only memory."""
    engine, other = side.engine(), side.engine()
    weights = first()
    await side.hand_over(weights)
    parcel = await side.store.parcel(weights.version, None)
    for one in (engine, other):
        await one.take(parcel)
    new = after(weights, 1, 1e-5)
    await side.hand_over(new)
    await engine.take(await side.store.parcel(new.version, weights.sha256))
    assert engine.holds == new.sha256
    await other.take(await side.store.parcel(new.version, weights.sha256))
    assert other.holds == new.sha256


async def test_files_of_older_versions_and_earlier_lives_are_removed(tmp_path: Path) -> None:
    settings = TransportSettings("disk", str(tmp_path))
    (tmp_path / "weights-7.0-full-left.bin.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"somebody's")
    side = Side(settings)
    assert os.listdir(tmp_path) == ["notes.txt"]
    engine, weights = side.engine(), first()
    for step in range(3):
        weights = after(weights, step, 1e-5)
        [parcel] = await side.publish(weights, engine)
        assert isinstance(parcel.body, StoredFile)
        assert sorted(os.listdir(tmp_path)) == ["notes.txt", Path(parcel.body.path).name]


async def test_a_file_that_is_gone_or_another_is_a_bad_parcel(tmp_path: Path) -> None:
    disk = build_transport(TransportSettings("disk", str(tmp_path)))
    weights = first()
    one, other = disk.send(weights), disk.send(after(weights, 1, 1.0))
    assert isinstance(one.body, StoredFile)
    assert isinstance(other.body, StoredFile)
    os.replace(other.body.path, one.body.path)
    with pytest.raises(BadParcel, match=r"holds other bytes than were written|has .* bytes"):
        disk.receive(one)
    with pytest.raises(BadParcel, match="cannot be read from"):
        disk.receive(other)


def test_a_uri_names_a_folder_too(tmp_path: Path) -> None:
    disk = build_transport(TransportSettings("disk", (tmp_path / "deep" / "er").as_uri()))
    weights = first()
    content = disk.receive(disk.send(weights))
    assert isinstance(content, Weights)
    assert equal(content, weights)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        (TransportSettings("disc"), "publish.transport is 'disc', .*: did you mean 'disk'?"),
        (TransportSettings("smoke"), "choose one of \\['disk', 'ipc', 'nccl', 'object_store'\\]"),
        (TransportSettings("disk"), "publish.path: transport 'disk' needs a folder or a URI"),
        (TransportSettings("disk", "some/where"), "neither an absolute path nor a URI"),
        (TransportSettings("disk", "nope://x/y"), "'nope://x/y' cannot be opened"),
    ],
)
def test_what_is_no_transport_is_told(settings_: TransportSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_transport(settings_)
