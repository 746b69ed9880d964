from __future__ import annotations

import asyncio
import itertools

import pytest

from manta.actors.leases import Ask, Ticket
from manta.actors.router import Router

NUMBERS = itertools.count()


def ask(rows: int = 1, holder: str = "w") -> Ask:
    return Ask(Ticket(holder, next(NUMBERS)), (0,), rows, 3)


class Unfinished:
    """Answers with the rows that each call needs."""

    def __init__(self) -> None:
        self.rows: dict[Ticket, int] = {}

    async def remote(self) -> dict[Ticket, int]:
        return self.rows


class Abandoned:
    """A rollout worker's handle: notes the tickets that it is told to drop."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.unfinished = Unfinished()

    @property
    def abandon(self) -> Abandoned:
        return self

    def remote(self, tickets: list[Ticket]) -> None:
        self.tickets += tickets


async def serving(*engines: str) -> tuple[Router, dict[str, Abandoned]]:
    router = Router(max_rows=3, most_rows=4)
    handles = {name: Abandoned() for name in engines}
    for name, handle in handles.items():
        await router.join(name, handle)  # type: ignore[arg-type]
        await router.tell(name, "serve")
    return router, handles


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_wait_until_an_engine_has_proved_its_weights() -> None:
    router = Router(3, 4)
    waiting = [asyncio.create_task(router.acquire(ask())) for _ in range(3)]
    handle = Abandoned()
    await router.join("a", handle)  # type: ignore[arg-type]
    await turns()
    assert not any(task.done() for task in waiting)
    await router.tell("a", "serve")
    for lease, found in await asyncio.gather(*waiting):
        assert (lease.engine, found) == ("a", handle)
    assert (await router.figures()).engines["a"].rows == 3


async def test_calls_wait_again_once_the_last_engine_is_gone() -> None:
    router, _ = await serving("a")
    wanted = ask()
    await router.acquire(wanted)
    await router.lose(wanted.ticket)
    waiting = asyncio.create_task(router.acquire(ask()))
    await turns()
    assert not waiting.done()
    new = Abandoned()
    await router.join("a", new)  # type: ignore[arg-type]
    await router.tell("a", "serve")
    lease, handle = await waiting
    assert (lease.life.generation, handle) == (1, new)


async def test_room_wakes_who_waits() -> None:
    router, _ = await serving("a")
    first, second = ask(rows=3), ask(rows=3)
    await router.acquire(first)
    waiting = asyncio.create_task(router.acquire(second))
    await turns()
    assert not waiting.done()
    await router.release(first.ticket, 7)
    assert (await waiting)[0].ticket == second.ticket


async def test_a_call_that_is_given_up_holds_back_nobody() -> None:
    router, _ = await serving("a")
    large, given_up, last = ask(rows=4), ask(rows=4), ask(rows=4)
    await router.acquire(large)
    waiting = [asyncio.create_task(router.acquire(a)) for a in (given_up, last)]
    await turns()
    await router.withdraw(given_up.ticket)
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    await router.release(large.ticket)
    assert (await waiting[1])[0].ticket == last.ticket
    await router.release(last.ticket)
    assert (await router.figures()).rows == 0


async def test_a_call_that_is_given_up_as_it_is_granted_leaves_its_room() -> None:
    router, _ = await serving("a")
    large, given_up, last = ask(rows=4), ask(rows=4), ask(rows=4)
    await router.acquire(large)
    waiting = [asyncio.create_task(router.acquire(a)) for a in (given_up, last)]
    await turns()
    await router.release(large.ticket)
    await router.withdraw(given_up.ticket)
    assert (await asyncio.wait_for(waiting[1], 5))[0].ticket == last.ticket
    assert (await router.figures()).rows == 4


async def test_a_word_may_overtake_the_ask_that_it_is_about() -> None:
    router, _ = await serving("a")
    withdrawn, dead, last = ask(rows=4), ask(rows=4, holder="dead"), ask(rows=4)
    await router.withdraw(withdrawn.ticket)
    await router.forget("dead")
    for late in (withdrawn, dead):
        with pytest.raises(asyncio.CancelledError):
            await router.acquire(late)
    assert (await asyncio.wait_for(router.acquire(last), 5))[0].ticket == last.ticket


async def test_a_dead_worker_s_rows_are_dropped_in_the_engines() -> None:
    router, handles = await serving("a", "b")
    dead = [ask(holder="dead") for _ in range(2)]
    for wanted in dead:
        await router.acquire(wanted)
    await router.acquire(ask(holder="alive"))
    await router.forget("dead")
    assert [handles["a"].tickets, handles["b"].tickets] == [[dead[0].ticket], [dead[1].ticket]]
    assert (await router.figures()).rows == 1


async def test_draining_ends_with_the_last_call() -> None:
    router, _ = await serving("a", "b")
    first, second = ask(), ask()
    await router.acquire(first)
    await router.acquire(second)
    draining = asyncio.create_task(router.drain("a"))
    await turns()
    assert not draining.done()
    assert (await router.acquire(ask()))[0].engine == "b"
    await router.release(first.ticket)
    await asyncio.wait_for(draining, 5)
    await asyncio.wait_for(router.drain("a"), 5)


async def test_samples_that_end_early_make_room_for_calls_that_wait() -> None:
    router, handles = await serving("a")
    first = ask(rows=4)
    await router.acquire(first)
    waiting = asyncio.create_task(router.acquire(ask(rows=2)))
    await turns()
    assert not waiting.done()
    handles["a"].unfinished.rows = {first.ticket: 2}
    lease, _ = await asyncio.wait_for(waiting, 5)
    assert lease.rows == 2
