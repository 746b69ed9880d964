from __future__ import annotations

import asyncio

from manta.actors.router import Lease, Leases, Router


def leases_of(*engines: str) -> Leases:
    leases = Leases()
    for engine in engines:
        leases.register(engine)
    return leases


def acquired(leases: Leases, tokens: int) -> Lease:
    lease = leases.acquire(tokens)
    assert lease is not None
    return lease


def test_the_least_loaded_engine_is_taken() -> None:
    leases = leases_of("b", "a")
    taken = [acquired(leases, tokens) for tokens in (100, 10, 50, 50, 1)]
    assert [lease.engine for lease in taken] == ["a", "b", "b", "b", "a"]
    assert leases.loads() == {"a": 101, "b": 110}
    for lease in taken:
        leases.release(lease)
    assert leases.loads() == {"a": 0, "b": 0}


def test_without_an_engine_there_is_no_lease() -> None:
    leases = leases_of("a")
    leases.retire("a")
    leases.retire("never")
    assert leases.acquire(1) is None
    assert leases.loads() == {}


def test_a_lease_from_an_earlier_life_counts_for_nothing() -> None:
    leases = leases_of("a")
    old = acquired(leases, 100)
    leases.retire("a")
    leases.release(old)
    leases.register("a")
    new = acquired(leases, 7)
    assert (old.generation, new.generation) == (0, 1)
    leases.release(old)
    assert leases.loads() == {"a": 7}
    leases.release(new)
    assert leases.loads() == {"a": 0}


def test_an_engine_that_died_under_a_lease_leaves_but_not_its_successor() -> None:
    leases = leases_of("a", "b")
    first, other = acquired(leases, 5), acquired(leases, 5)
    leases.lose(first)
    assert leases.loads() == {"b": 5}
    leases.register("a")
    leases.lose(first)
    leases.release(first)
    leases.release(other)
    assert leases.loads() == {"a": 0, "b": 0}


async def test_requests_wait_until_an_engine_is_in_service() -> None:
    router = Router()
    waiting = [asyncio.create_task(router.acquire(3)) for _ in range(3)]
    await asyncio.sleep(0)
    await router.register("a", "handle of a")  # type: ignore[arg-type]
    for lease, handle in await asyncio.gather(*waiting):
        assert (lease.engine, handle) == ("a", "handle of a")
    assert await router.loads() == {"a": 9}


async def test_requests_wait_again_once_the_last_engine_is_gone() -> None:
    router = Router()
    await router.register("a", "handle of a")  # type: ignore[arg-type]
    lease, _ = await router.acquire(1)
    await router.lose(lease)
    waiting = asyncio.create_task(router.acquire(1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    await router.register("a", "new handle")  # type: ignore[arg-type]
    again, handle = await waiting
    assert (again.generation, handle) == (1, "new handle")
    await router.release(again)
    await router.retire("a")
    assert await router.loads() == {}
