from __future__ import annotations

import asyncio

import pytest

from manta.actors.dispatch import MAX_LOSSES, Dispatch, DispatchSettings, EngineLost
from manta.actors.leases import Ask, Lease, Ticket
from manta.actors.router_figures import EngineLife
from manta.envs.records import VersionSpan, WeightVersion
from tests.unit.actors.completions import OnCall, OneAfterTheOther, request

QUICK = DispatchSettings(rows_per_call=100, progress_seconds=0.01, restarts=False)


def dispatch(router: OneAfterTheOther, settings: DispatchSettings = QUICK) -> Dispatch:
    return Dispatch(router, "w", settings)


async def test_a_lost_engine_s_tokens_are_kept_and_the_rest_is_made_elsewhere() -> None:
    dying, other = OnCall(1, visible=6, looks=2, dies=True), OnCall(2)
    router = OneAfterTheOther(dying, other)
    [found] = await dispatch(router).generate([request(20, 4, 20)], (5,), {})
    for seed, completion in enumerate(found):
        count = (20, 4, 20)[seed]
        assert completion.token_ids.tolist() == [100 * seed + i for i in range(count)]
    first, done, _ = found
    assert first.weight_versions == (
        VersionSpan(0, WeightVersion(1, 0)),
        VersionSpan(6, WeightVersion(2, 0)),
    )
    assert done.weight_versions == (VersionSpan(0, WeightVersion(1, 0)),)
    assert other.num_asked == (20 - 6) * 2
    asked, again = router.asks
    assert (asked.rows, asked.tokens, asked.is_retry, asked.rank) == (3, 2 + 44, False, (5,))
    assert (again.rows, again.tokens) == (2, 2 * (2 + 6) + 28)
    assert (again.is_retry, again.kept, again.rank) == (True, 6 + 4 + 6, (5,))
    assert router.events == [
        ("lose", asked.ticket, 0),
        ("release", asked.ticket, 16),
        ("release", again.ticket, 28),
    ]


async def test_a_deterministic_call_is_not_patched_together() -> None:
    router = OneAfterTheOther(OnCall(1, visible=6, looks=1, dies=True), OnCall(2))
    settings = DispatchSettings(100, 0.01, restarts=True)
    with pytest.raises(EngineLost):
        await dispatch(router, settings).generate([request(20)], (0,), {})
    assert len(router.asks) == 1


async def test_a_call_that_every_engine_dies_of_is_given_up() -> None:
    router = OneAfterTheOther(OnCall(1, dies=True))
    with pytest.raises(EngineLost):
        await dispatch(router).generate([request(20)], (0,), {})
    assert len(router.asks) == MAX_LOSSES
    assert [what for what, _, _ in router.events] == ["lose", "release"] * MAX_LOSSES


async def test_a_cancelled_call_frees_its_rows_and_its_lease() -> None:
    engine = OnCall(1, visible=1, looks=10**9)
    router = OneAfterTheOther(engine)
    call = asyncio.ensure_future(dispatch(router).generate([request(20)], (0,), {}))
    while not engine.requests:
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    [ask] = router.asks
    assert engine.abandoned == [ask.ticket]
    assert [(what, ticket) for what, ticket, _ in router.events] == [("release", ask.ticket)]


async def test_a_call_that_still_waits_for_an_engine_can_be_cancelled() -> None:
    class Never(OneAfterTheOther):
        async def acquire(self, ask: object) -> object:  # type: ignore[override]
            return await asyncio.Event().wait()

    router = Never(OnCall(1))
    call = asyncio.ensure_future(dispatch(router).generate([request(20)], (0,), {}))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert router.events == []


async def test_the_next_ask_waits_until_the_router_knows_the_loss() -> None:
    class Slow(OneAfterTheOther):
        async def lose(self, ticket: Ticket) -> None:
            await asyncio.sleep(0.01)
            await super().lose(ticket)

        async def acquire(self, ask: Ask) -> tuple[Lease, OnCall]:
            assert len(self.asks) == sum(what == "lose" for what, _, _ in self.events)
            return await super().acquire(ask)

    router = Slow(OnCall(1, dies=True), OnCall(2))
    await dispatch(router).generate([request(3)], (0,), {})
    assert len(router.asks) == 2


async def test_calls_are_of_a_bounded_number_of_rows() -> None:
    engine = OnCall(1)
    router = OneAfterTheOther(engine)
    settings = DispatchSettings(rows_per_call=5, progress_seconds=9.0, restarts=False)
    budgets = [(3, 3), (3, 3), (3,) * 9, (3,), (3,)]
    requests = [request(*b, first=10 * i) for i, b in enumerate(budgets)]
    found = await dispatch(router, settings).generate(requests, (0,), {})
    assert [[len(r.seeds) for r in call] for call in engine.requests] == [[2, 2], [9], [1, 1]]
    assert [[c.token_ids[0] // 100 for c in group] for group in found] == [
        [10 * i + j for j in range(len(b))] for i, b in enumerate(budgets)
    ]


async def test_the_next_turn_asks_for_the_engine_that_has_the_prefix() -> None:
    first, second = OnCall(1), OnCall(2)
    router = OneAfterTheOther(first, second)
    settings = DispatchSettings(rows_per_call=1, progress_seconds=9.0, restarts=False)
    one = dispatch(router, settings)
    homes: dict[str, EngineLife] = {}
    await one.generate([request(3, session="x"), request(3, session="y")], (0,), homes)
    assert set(homes.values()) == {EngineLife("e0", 0), EngineLife("e1", 0)}
    assert [ask.prefers for ask in router.asks] == [None, None]
    together = Dispatch(router, "w", QUICK)
    turn = [request(3, session=s) for s in ("y", "x", "y", "z")]
    before = dict(homes)
    await together.generate(turn, (0,), homes)
    assert [ask.prefers for ask in router.asks[2:]] == [before["y"], before["x"], None]
