"""Leases: which engine takes a call, and who waits for one. A plain object, in nobody's event loop.

Owns the engines' states, what is outstanding on each, and the queue. A call is handed out whole.
It asks once and waits until it is granted; whoever changes something asks `grant` who is next.

Order. Calls are granted strictly by rank, then by arrival: the oldest group first, since groups are
consumed in that order. A call that fits nowhere holds back those behind it, so that no large one
starves.

Back-pressure. An engine holds at most its limit of rows; a call that is larger than that gets an
engine of its own. Rows of a call whose samples have ended count no longer, where the engine tells:
else the longest sample of each call would hold the rows of all the others.

Stickiness. A call may name the engine that has its prefix. It gets it unless that engine does not
serve, has no room, or has more than `OVERLOAD` times the work of the least loaded one.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from manta.actors.engine_state import EngineState, Word, after
from manta.actors.least_loaded import LeastLoaded
from manta.actors.router_figures import EngineFigures, EngineLife, RouterFigures, wait_figures
from manta.actors.row_limit import RowLimit

OVERLOAD = 2.0
_WAITS = 256


class Ticket(NamedTuple):
    """A call by its `holder` (the worker that waits for it), whose `number`-th it is."""

    holder: str
    number: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A call that wants an engine: `rows` to decode, `tokens` of work (prefixes and budgets).

    Lower ranks come first. `is_retry` says that an engine was lost under it, `kept` how many tokens
    that one had made for it.
    """

    ticket: Ticket
    rank: tuple[int, ...]
    rows: int
    tokens: int
    prefers: EngineLife | None = None
    is_retry: bool = False
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to make one call to an engine in that life of it."""

    ticket: Ticket
    life: EngineLife
    rows: int
    tokens: int

    @property
    def engine(self) -> str:
        return self.life.engine


@dataclass(slots=True)
class _Engine:
    limit: RowLimit
    generation: int = -1
    state: EngineState = "gone"
    leases: dict[Ticket, Lease] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    """Sums over the leases."""

    def hold(self, lease: Lease) -> None:
        self.leases[lease.ticket] = lease
        self.rows += lease.rows
        self.tokens += lease.tokens

    def give_up(self, ticket: Ticket) -> None:
        lease = self.leases.pop(ticket)
        self.rows -= lease.rows
        self.tokens -= lease.tokens

    def takes(self, ask: Ask) -> bool:
        has_room = self.rows == 0 or self.rows + ask.rows <= self.limit.rows
        return self.state == "serving" and (has_room or ask.rows == 0)


class Leases:
    def __init__(
        self, new_limit: Callable[[], RowLimit], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`new_limit` makes the row limit of an engine that joins."""
        self._new_limit, self._clock = new_limit, clock
        self._engines: dict[str, _Engine] = {}
        self._serving = LeastLoaded()
        self._held: dict[Ticket, Lease] = {}
        self._queue: list[tuple[tuple[int, ...], int, Ask, float]] = []
        self._waiting: dict[Ticket, float] = {}
        self._arrivals = 0
        self._waits: deque[float] = deque(maxlen=_WAITS)
        self._retries = self._kept = 0
        self._lost: list[EngineLife] = []
        self._withdrawn: set[Ticket] = set()
        self._dead: set[str] = set()

    def tell(self, name: str, word: Word) -> None:
        """Moves an engine's state; `join` begins a new life of that name."""
        engine = self._engines.get(name)
        if engine is None:
            engine = self._engines[name] = _Engine(self._new_limit())
        engine.state = after(engine.state, word)
        if word == "join":
            engine.generation += 1
            engine.limit = self._new_limit()
        if word in ("join", "lose"):
            self._drop(engine)
        self._changed(name)

    def ask(self, ask: Ask) -> bool:
        """Puts `ask` in the queue; False where nobody waits for it any more, as was told before."""
        if ask.ticket in self._withdrawn or ask.ticket.holder in self._dead:
            self._withdrawn.discard(ask.ticket)
            return False
        now = self._clock()
        self._waiting[ask.ticket] = now
        heapq.heappush(self._queue, (ask.rank, self._arrivals, ask, now))
        self._arrivals += 1
        self._retries += ask.is_retry
        self._kept += ask.kept
        return True

    def grant(self) -> list[Lease]:
        """The leases that can be handed out now, in order."""
        granted = []
        while self._queue:
            ask = self._queue[0][2]
            if ask.ticket in self._waiting:
                name = self._place(ask)
                if name is None:
                    break
                self._waits.append(self._clock() - self._waiting.pop(ask.ticket))
                granted.append(self._lease(ask, name))
            heapq.heappop(self._queue)
        return granted

    def release(self, ticket: Ticket, generated: int = 0) -> None:
        """The call that has, or had, a lease is over, `generated` tokens richer."""
        lease = self._held.pop(ticket, None)
        if lease is not None:
            engine = self._engines[lease.engine]
            engine.give_up(ticket)
            engine.limit.note(generated, bool(self._waiting), self._clock())
            self._changed(lease.engine)

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for the ask of this ticket any more, be it to come, queued or granted."""
        if ticket in self._held:
            self.release(ticket)
        elif self._waiting.pop(ticket, None) is None:
            self._withdrawn.add(ticket)

    def shrink(self, unfinished: Mapping[Ticket, int]) -> None:
        """The calls under way need only so many rows still."""
        for ticket, rows in unfinished.items():
            lease = self._held.get(ticket)
            if lease is not None and rows < lease.rows:
                engine = self._engines[lease.engine]
                engine.give_up(ticket)
                self._held[ticket] = replace(lease, rows=rows)
                engine.hold(self._held[ticket])
                self._changed(lease.engine)

    def lose(self, ticket: Ticket) -> None:
        """The engine died under this call. One that has come back under its name is another."""
        lease = self._held.get(ticket)
        if lease is not None:
            self._lost.append(lease.life)
            self.tell(lease.engine, "lose")

    def forget(self, holder: str) -> list[Lease]:
        """The holder died, and none comes back under its name: its calls wait no more; the leases
        that it held are free."""
        self._dead.add(holder)
        for ticket in [ticket for ticket in self._waiting if ticket.holder == holder]:
            del self._waiting[ticket]
        leases = [lease for lease in self._held.values() if lease.ticket.holder == holder]
        for lease in leases:
            self.release(lease.ticket)
        return leases

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> list[str]:
        """The engines that serve and have calls."""
        return [n for n, e in self._engines.items() if e.state == "serving" and e.leases]

    def state(self, name: str) -> EngineState:
        return self._engines[name].state if name in self._engines else "gone"

    def figures(self) -> RouterFigures:
        now = self._clock()
        engines: Mapping[str, EngineFigures] = {
            name: EngineFigures(e.state, e.generation, e.rows, e.tokens, e.limit.rows)
            for name, e in self._engines.items()
        }
        p50, longest = wait_figures(self._waits, [now - since for since in self._waiting.values()])
        waiting = len(self._waiting)
        lost = tuple(self._lost)
        rows = sum(ask.rows for _, _, ask, _ in self._queue if ask.ticket in self._waiting)
        counts = self._retries, self._kept
        return RouterFigures(engines, waiting, p50, longest, *counts, lost, rows)

    def _place(self, ask: Ask) -> str | None:
        """The engine for `ask`; None where none that serves has room."""
        engines = self._engines
        least = self._serving.first(ask.rows, lambda name: engines[name].takes(ask))
        if least is None or ask.prefers is None:
            return least
        home = engines.get(ask.prefers.engine)
        if home is not None and home.generation == ask.prefers.generation and home.takes(ask):
            bound = OVERLOAD * (engines[least].tokens + ask.tokens)
            if home.tokens + ask.tokens <= bound:
                return ask.prefers.engine
        return least

    def _lease(self, ask: Ask, name: str) -> Lease:
        engine = self._engines[name]
        lease = Lease(ask.ticket, EngineLife(name, engine.generation), ask.rows, ask.tokens)
        self._held[ask.ticket] = lease
        engine.hold(lease)
        self._changed(name)
        return lease

    def _drop(self, engine: _Engine) -> None:
        for ticket in list(engine.leases):
            del self._held[ticket]
            engine.give_up(ticket)

    def _changed(self, name: str) -> None:
        """After every change of an engine: in service or not, and how much work it has."""
        engine = self._engines[name]
        if engine.state == "draining" and not engine.leases:
            engine.state = "gone"
        if engine.state == "serving":
            self._serving.put(name, engine.tokens)
        else:
            self._serving.remove(name)
