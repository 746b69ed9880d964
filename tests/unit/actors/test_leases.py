from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.actors.leases import OVERLOAD, Ask, Lease, Leases, Ticket
from manta.actors.router_figures import MOST_NAMED, EngineLife
from manta.actors.row_limit import FixedLimit

ROWS = 8
NUMBERS = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def serving(*engines: str, rows: int = ROWS, clock: Clock | None = None) -> Leases:
    leases = Leases(lambda: FixedLimit(rows), clock or Clock())
    for engine in engines:
        leases.tell(engine, "join")
        leases.tell(engine, "serve")
    return leases


def ask(
    rows: int = 1,
    tokens: int = 10,
    rank: int = 0,
    holder: str = "w",
    prefers: EngineLife | None = None,
    is_retry: bool = False,
    kept: int = 0,
) -> Ask:
    ticket = Ticket(holder, next(NUMBERS))
    return Ask(ticket, (rank,), rows, tokens, prefers, is_retry, kept)


def granted(leases: Leases, wanted: Ask) -> Lease:
    leases.ask(wanted)
    [lease] = leases.grant()
    assert lease.ticket == wanted.ticket
    return lease


def test_the_least_loaded_engine_is_taken() -> None:
    leases = serving("b", "a")
    taken = [granted(leases, ask(tokens=tokens)) for tokens in (100, 10, 50, 50, 1)]
    assert [lease.engine for lease in taken] == ["a", "b", "b", "b", "a"]
    figures = leases.figures().engines
    assert (figures["a"].tokens, figures["b"].tokens) == (101, 110)
    for lease in taken:
        leases.release(lease.ticket)
    assert all((f.tokens, f.rows) == (0, 0) for f in leases.figures().engines.values())


@pytest.mark.parametrize("word", ["pause", "drain", "lose", "join"])
def test_only_an_engine_that_serves_gets_a_lease(word: str) -> None:
    leases = serving("a")
    granted(leases, ask())
    leases.tell("a", word)  # type: ignore[arg-type]
    leases.ask(ask())
    assert leases.grant() == []
    assert leases.state("never") == "gone"


def test_a_paused_engine_keeps_its_calls_and_gets_more_when_it_serves_again() -> None:
    leases = serving("a")
    lease = granted(leases, ask(tokens=70))
    leases.tell("a", "pause")
    late = ask()
    leases.ask(late)
    assert leases.grant() == []
    assert leases.figures().engines["a"].tokens == 70
    leases.tell("a", "serve")
    assert [lease.ticket for lease in leases.grant()] == [late.ticket]
    leases.release(lease.ticket)
    assert leases.figures().engines["a"].tokens == 10


def test_a_draining_engine_is_gone_with_its_last_call() -> None:
    leases = serving("a")
    first, second = granted(leases, ask()), granted(leases, ask())
    leases.tell("a", "drain")
    leases.release(first.ticket)
    leases.tell("a", "pause")
    leases.tell("a", "serve")
    assert leases.state("a") == "draining"
    leases.release(second.ticket)
    assert leases.state("a") == "gone"


def test_an_engine_that_died_under_a_call_leaves_but_not_its_successor() -> None:
    leases = serving("a", "b")
    first, other = granted(leases, ask()), granted(leases, ask())
    beside = granted(leases, ask())
    assert (first.engine, other.engine, beside.engine) == ("a", "b", "a")
    leases.lose(first.ticket)
    assert (leases.state("a"), leases.state("b")) == ("gone", "serving")
    leases.tell("a", "serve")
    assert leases.state("a") == "gone"
    leases.tell("a", "join")
    leases.tell("a", "serve")
    leases.lose(beside.ticket)
    leases.release(beside.ticket)
    assert leases.state("a") == "serving"
    assert granted(leases, ask()).life == EngineLife("a", 1)
    assert leases.figures().lost == (EngineLife("a", 0),)


def test_an_engine_holds_no_more_rows_than_its_limit() -> None:
    leases = serving("a")
    asks = [ask(rows=3) for _ in range(4)]
    for wanted in asks:
        leases.ask(wanted)
    assert [lease.ticket for lease in leases.grant()] == [a.ticket for a in asks[:2]]
    leases.release(asks[0].ticket)
    assert [lease.ticket for lease in leases.grant()] == [asks[2].ticket]
    assert leases.figures().waiting == 1


def test_a_call_larger_than_the_limit_gets_an_engine_of_its_own() -> None:
    leases = serving("a")
    small = granted(leases, ask())
    large, behind = ask(rows=ROWS + 1), ask()
    leases.ask(large)
    leases.ask(behind)
    assert leases.grant() == []
    leases.release(small.ticket)
    assert [lease.ticket for lease in leases.grant()] == [large.ticket]
    leases.release(large.ticket)
    assert [lease.ticket for lease in leases.grant()] == [behind.ticket]


def test_scoring_takes_no_rows() -> None:
    leases = serving("a")
    granted(leases, ask(rows=ROWS))
    assert granted(leases, ask(rows=0)).engine == "a"


def test_lower_ranks_go_first_then_who_came_first() -> None:
    leases = serving("a", rows=1)
    now = granted(leases, ask())
    asks = [ask(rank=rank) for rank in (2, 1, 2, 0, 1)]
    for wanted in asks:
        leases.ask(wanted)
    order = []
    for _ in asks:
        leases.release(now.ticket)
        [now] = leases.grant()
        order.append(now.ticket)
    assert order == [asks[i].ticket for i in (3, 1, 4, 0, 2)]


def test_a_session_stays_where_its_prefix_is() -> None:
    leases = serving("a", "b")
    granted(leases, ask(tokens=10))
    home = EngineLife("a", 0)
    assert granted(leases, ask(tokens=30, prefers=home)).engine == "a"


def test_a_session_leaves_an_engine_that_is_overloaded() -> None:
    leases = serving("a", "b")
    granted(leases, ask(tokens=100))
    home = EngineLife("a", 0)
    enough = int(100 / (OVERLOAD - 1))
    assert granted(leases, ask(tokens=enough - 1, prefers=home)).engine == "b"
    leases = serving("a", "b")
    granted(leases, ask(tokens=100))
    assert granted(leases, ask(tokens=enough, prefers=home)).engine == "a"


@pytest.mark.parametrize("why", ["paused", "full", "another life", "never heard of"])
def test_a_session_goes_elsewhere_where_its_engine_cannot_take_it(why: str) -> None:
    leases = serving("a", "b")
    home = EngineLife("a", 0)
    if why == "paused":
        leases.tell("a", "pause")
    elif why == "full":
        granted(leases, ask(rows=ROWS, tokens=1))
        granted(leases, ask(rows=1, tokens=1))
    elif why == "another life":
        leases.tell("a", "join")
        leases.tell("a", "serve")
        granted(leases, ask(tokens=1))
    else:
        home = EngineLife("c", 0)
        granted(leases, ask(tokens=1))
    assert granted(leases, ask(tokens=500, prefers=home)).engine == "b"


def test_what_a_dead_worker_held_is_free() -> None:
    leases = serving("a")
    held = granted(leases, ask(rows=5, holder="dead"))
    others = granted(leases, ask(rows=3, holder="alive"))
    leases.ask(ask(rows=2, holder="dead"))
    last = ask(rows=5, holder="alive")
    leases.ask(last)
    assert leases.forget("dead") == [held]
    assert [lease.ticket for lease in leases.grant()] == [last.ticket]
    assert leases.figures().engines["a"].rows == others.rows + last.rows
    assert leases.forget("dead") == []


def test_figures_say_who_waits_and_for_how_long() -> None:
    clock = Clock()
    leases = serving("a", rows=1, clock=clock)
    now = granted(leases, ask())
    first, second = ask(), ask(is_retry=True, kept=40)
    leases.ask(first)
    clock.now = 2.0
    leases.ask(second)
    leases.release(now.ticket)
    leases.grant()
    clock.now = 5.0
    figures = leases.figures()
    assert (figures.waiting, figures.wait_p50, figures.wait_max) == (1, 2.0, 3.0)
    assert (figures.retries, figures.kept_tokens) == (1, 40)
    assert figures.metrics() == {
        "router/waiting": 1.0,
        "router/wait_p50": 2.0,
        "router/wait_max": 3.0,
        "router/retries": 1.0,
        "router/kept_tokens": 40.0,
        "router/rows": 1.0,
        "router/rows/a": 1.0,
        "router/tokens/a": 10.0,
        "router/limit/a": 1.0,
    }


def test_of_many_engines_metrics_tell_the_least_and_the_most() -> None:
    leases = serving(*(f"engine-{i}" for i in range(MOST_NAMED + 1)))
    for _ in range(3):
        granted(leases, ask(rows=2, tokens=7))
    metrics = leases.figures().metrics()
    assert (metrics["router/rows/least"], metrics["router/rows/most"]) == (0.0, 2.0)
    assert (metrics["router/tokens/most"], metrics["router/limit/least"]) == (7.0, ROWS)
    assert not any("engine-" in name for name in metrics)


WORDS = ("join", "pause", "serve", "drain", "lose")


class Walk:
    """Random things that happen, against what must hold after each."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.leases = Leases(lambda: FixedLimit(ROWS), Clock())
        self.waiting: dict[Ticket, tuple[tuple[int, ...], int, int]] = {}
        self.held: dict[Ticket, Lease] = {}
        self.arrivals = itertools.count()
        self.holders = ["x", "y"]
        self.early: list[Ask] = []

    def step(self) -> None:
        action = self.random.choice(
            (self.ask, self.ask, self.end, self.end, self.early_end, self.tell, self.die)
        )
        action()
        self.grant()

    def ask(self) -> None:
        wanted = ask(
            rows=self.random.choice((0, 1, 2, 5, ROWS, ROWS + 4)),
            tokens=self.random.randrange(1, 100),
            rank=self.random.randrange(3),
            holder=self.random.choice(self.holders),
            prefers=self.random.choice((None, EngineLife("a", 0), EngineLife("b", 1))),
        )
        self.waiting[wanted.ticket] = (wanted.rank, next(self.arrivals), wanted.rows)
        assert self.leases.ask(wanted)

    def early_end(self) -> None:
        """An ask is withdrawn before it comes; one that was withdrawn comes."""
        if self.early and self.random.random() < 0.5:
            assert not self.leases.ask(self.early.pop())
        else:
            self.early.append(ask(rows=1, holder=self.random.choice(self.holders)))
            self.leases.withdraw(self.early[-1].ticket)

    def end(self) -> None:
        """A call ends, is withdrawn, or finds its engine dead."""
        tickets = [*self.held, *self.waiting]
        if not tickets:
            return
        ticket = self.random.choice(tickets)
        if ticket in self.held and self.random.random() < 0.1:
            self.leases.lose(ticket)
            self.gone(self.held[ticket].engine)
        if ticket in self.waiting or self.random.random() < 0.1:
            self.leases.withdraw(ticket)
        self.leases.release(ticket, 5)
        self.waiting.pop(ticket, None)
        self.held.pop(ticket, None)

    def tell(self) -> None:
        engine, word = self.random.choice("abc"), self.random.choice(WORDS)
        self.leases.tell(engine, word)  # type: ignore[arg-type]
        if word in ("join", "lose"):
            self.gone(engine)

    def die(self) -> None:
        if self.random.random() < 0.2:
            holder = self.holders.pop(self.random.randrange(2))
            self.holders.append(holder + "'")
            self.leases.forget(holder)
            for calls in (self.waiting, self.held):
                for ticket in [ticket for ticket in calls if ticket.holder == holder]:
                    del calls[ticket]  # type: ignore[attr-defined]

    def gone(self, engine: str) -> None:
        self.held = {t: lease for t, lease in self.held.items() if lease.engine != engine}

    def grant(self) -> None:
        for lease in self.leases.grant():
            assert self.leases.state(lease.engine) == "serving"
            first = min(self.waiting, key=lambda ticket: self.waiting[ticket][:2])
            assert lease.ticket == first, "not first come, first served"
            del self.waiting[lease.ticket]
            self.held[lease.ticket] = lease
        self.check()

    def check(self) -> None:
        figures = self.leases.figures()
        assert figures.waiting == len(self.waiting)
        for name, engine in figures.engines.items():
            mine = [lease for lease in self.held.values() if lease.engine == name]
            assert engine.rows == sum(lease.rows for lease in mine)
            assert engine.tokens == sum(lease.tokens for lease in mine)
            alone = [lease for lease in mine if lease.rows > ROWS]
            assert engine.rows <= ROWS or engine.rows == alone[0].rows
        if self.waiting:
            head = min(self.waiting.values())
            for engine in figures.engines.values():
                has_room = engine.rows == 0 or engine.rows + head[2] <= ROWS or head[2] == 0
                assert engine.state != "serving" or not has_room, "a wake-up was lost"

    def serve_out(self) -> Iterator[Ticket]:
        """One engine serves to the end: everyone that waits is served."""
        self.leases.tell("z", "join")
        self.leases.tell("z", "serve")
        self.grant()
        while self.held:
            ticket = next(iter(self.held))
            del self.held[ticket]
            self.leases.release(ticket)
            yield ticket
            self.grant()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(80):
        walk.step()
    left = {*walk.waiting, *walk.held}
    assert set(walk.serve_out()) == left
    assert not walk.waiting
    assert walk.leases.figures().rows == 0


def test_rows_of_samples_that_have_ended_make_room() -> None:
    leases = serving("a", rows=8)
    large, waiting = ask(rows=8), ask(rows=3)
    assert granted(leases, large).rows == 8
    leases.ask(waiting)
    leases.shrink({large.ticket: 6, Ticket("stranger", 0): 1})
    assert leases.grant() == []
    leases.shrink({large.ticket: 5})
    [lease] = leases.grant()
    assert lease.ticket == waiting.ticket
    leases.shrink({large.ticket: 7})
    assert leases.figures().engines["a"].rows == 8, "an older look changes nothing"
    leases.release(large.ticket)
    leases.release(waiting.ticket)
    assert leases.figures().engines["a"].rows == 0
