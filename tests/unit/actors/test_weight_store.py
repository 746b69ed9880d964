from __future__ import annotations

import asyncio

import pytest
import torch

from manta.actors.transports.settings import TransportSettings
from manta.actors.weight_store import WeightStore
from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights, content_hash
from manta.envs.records import WeightVersion


def weights(step: int, incarnation: int = 0) -> Weights:
    return pack({"w": torch.full((3,), float(step))}, WeightVersion(step, incarnation))


async def test_the_newest_snapshot_is_handed_out_as_often_as_asked() -> None:
    store = WeightStore(TransportSettings())
    for step in (1, 2):
        await store.put(weights(step))
    for _ in range(2):
        parcel = await store.parcel(WeightVersion(2, 0), None)
        assert isinstance(parcel.body, Weights)
        assert parcel.body.sha256 == weights(2).sha256


async def test_get_waits_for_the_version() -> None:
    store = WeightStore(TransportSettings())
    await store.put(weights(1))
    asked = asyncio.create_task(store.parcel(WeightVersion(2, 0), None))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not asked.done()
    await store.put(weights(2))
    assert (await asked).version == WeightVersion(2, 0)


@pytest.mark.parametrize("newer", [weights(3), weights(2, incarnation=1)])
async def test_a_replaced_version_is_an_error(newer: Weights) -> None:
    store = WeightStore(TransportSettings())
    asked = asyncio.create_task(store.parcel(WeightVersion(2, 0), None))
    await asyncio.sleep(0)
    await store.put(newer)
    with pytest.raises(ValueError, match=rf"weights 2\.0 were replaced by {newer.version}"):
        await asked


async def test_the_store_has_bytes_of_its_own() -> None:
    store, given = WeightStore(TransportSettings()), weights(1)
    await store.put(given)
    given.data[:] = 0
    kept = await store.parcel(WeightVersion(1, 0), None)
    assert isinstance(kept.body, Weights)
    assert content_hash(kept.body.specs, kept.body.data) == given.sha256
