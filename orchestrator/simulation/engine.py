"""An engine of which only the time passes: continuous batching whose pace follows what it holds.

Owns rows, decode steps and the versions that tokens are made under; makes no tokens. Beside
`manta.actors.engines.simulated.SimulatedEngine`, which makes tokens at one speed and is called by
real workers, this one is for a whole cluster in one process: it thinks in ends of rows, not in
tokens. Belongs to one event loop, whose clock it goes by.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from manta.actors.leases import Ticket
from manta.orchestrator.simulation.speeds import EngineSpeed

_ROUNDING = 1e-6
"""Of a decode step: what a clock's rounding may leave of it."""
_VERSIONS_KEPT = 64


@dataclass(frozen=True, slots=True)
class MadeRow:
    """A sample: its tokens by the step of the weights that they were made under; `is_cut`: others
    of its group were enough."""

    tokens_by_version: Mapping[int, int]
    is_cut: bool


@dataclass(slots=True, eq=False)
class _Row:
    group: _Group
    length: int
    begin: float = -1.0
    """The decode step before its first token; negative while it waits."""
    made: MadeRow | None = None


@dataclass(slots=True, eq=False)
class _Group:
    call: _Call
    prompt: int
    wanted: int
    is_prefilled: bool = False
    rows: list[_Row] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Call:
    done: asyncio.Future[None]
    left: int = 0


@dataclass(slots=True)
class EngineSeconds:
    """Of an engine so far: seconds in which it decoded or prefilled, row-seconds in use, and
    tokens made."""

    busy: float = 0.0
    rows: float = 0.0
    tokens: float = 0.0


class PacedEngine:
    """Decodes up to `max_rows` rows side by side at `speed`, in the order in which they came.
    With `recomputes`, keys and values of the rows under way are made anew after a load."""

    def __init__(self, speed: EngineSpeed, max_rows: int, recomputes: bool = True) -> None:
        self.seconds = EngineSeconds()
        self._speed, self._max_rows, self._recomputes = speed, max_rows, recomputes
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._steps = 0.0
        self._pace = 0.0
        """Decode steps a second, from `_since` on."""
        self._since = self._loop.time()
        self._rows = 0
        self._context = 0.0
        self._ends: list[tuple[float, int, _Row]] = []
        self._numbers = 0
        self._waiting: deque[_Row] = deque()
        self._calls: dict[Ticket, list[_Group]] = {}
        self._is_paused = False
        self._served: list[tuple[float, int]] = [(0.0, 0)]

    async def run(
        self, ticket: Ticket, prompts: Sequence[int], answers: Sequence[Sequence[int]], spare: int
    ) -> list[list[MadeRow]]:
        """Decodes groups, each of them with its prompt's tokens and answers of these lengths, of
        which `spare` are cut once the others, one at least, have ended. A cancelled call frees its
        rows."""
        call = _Call(self._loop.create_future())
        groups = []
        for prompt, lengths in zip(prompts, answers, strict=True):
            group = _Group(call, prompt, max(1, len(lengths) - spare))
            group.rows = [_Row(group, int(length)) for length in lengths]
            groups.append(group)
            call.left += len(lengths)
            self._waiting.extend(group.rows)
        self._calls[ticket] = groups
        self._go_on()
        try:
            await call.done
            return [[row.made for row in group.rows if row.made is not None] for group in groups]
        finally:
            del self._calls[ticket]
            self._drop(groups)
            # Rows and groups hold each other: a long simulation need not wait for the collector
            for group in groups:
                group.rows.clear()

    async def unfinished(self) -> dict[Ticket, int]:
        """By call, how many of its rows have not ended."""
        return {
            ticket: sum(row.made is None for group in groups for row in group.rows)
            for ticket, groups in self._calls.items()
        }

    def pause(self) -> None:
        self._advance()
        self._is_paused = True
        self._go_on()

    def load(self, version: int) -> None:
        """From the next token on, tokens are made under the weights of step `version`."""
        self._advance()
        if self._served[-1][0] == self._whole_steps:
            self._served.pop()
        self._served = [*self._served[-_VERSIONS_KEPT:], (self._whole_steps, version)]

    def resume(self) -> None:
        self._advance()
        self._is_paused = False
        if self._recomputes:
            self._stall(self._context)
        self._go_on()

    def settle(self) -> None:
        """Brings `seconds` up to now."""
        self._advance()
        self._go_on()

    @property
    def _whole_steps(self) -> float:
        """Where the step under way ends: what begins, begins there."""
        return float(math.ceil(self._steps - _ROUNDING))

    def _advance(self) -> None:
        now = self._loop.time()
        passed = now - self._since
        if passed > 0.0:
            self._since = now
            if self._pace > 0.0:
                self._count(passed)
                self._steps += passed * self._pace
                self._context += passed * self._pace * self._rows
                self.seconds.tokens += passed * self._pace * self._rows

    def _count(self, seconds: float) -> None:
        self.seconds.busy += seconds
        self.seconds.rows += seconds * self._rows

    def _stall(self, tokens: float) -> None:
        """Prefills `tokens`: nothing is decoded meanwhile, though rows are in use."""
        seconds = tokens * self._speed.prefill_per_token
        self._count(seconds)
        self._since = max(self._since, self._loop.time()) + seconds

    def _go_on(self) -> None:
        """Ends what has ended, begins what may begin, and sets the timer to what ends next."""
        self._advance()
        self._end_rows()
        if not self._is_paused:
            self._begin_rows()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pace = 0.0
        if self._is_paused or not self._rows:
            return
        self._pace = 1.0 / self._speed.step_seconds(self._rows, self._context)
        while self._ends and self._ends[0][2].made is not None:
            heapq.heappop(self._ends)
        left = max(0.0, self._ends[0][0] - self._steps)
        self._timer = self._loop.call_at(self._since + left / self._pace, self._go_on)

    def _begin_rows(self) -> None:
        while self._waiting and self._rows < self._max_rows:
            row = self._waiting.popleft()
            if row.made is not None:
                continue
            group = row.group
            if not group.is_prefilled:
                group.is_prefilled = True
                self._stall(group.prompt)
            row.begin = self._whole_steps
            self._rows += 1
            self._context += group.prompt
            self._numbers += 1
            heapq.heappush(self._ends, (row.begin + row.length, self._numbers, row))

    def _end_rows(self) -> None:
        while self._ends and self._ends[0][0] <= self._steps + _ROUNDING:
            row = heapq.heappop(self._ends)[2]
            if row.made is None:
                self._end(row, row.length, is_cut=False)
                group = row.group
                group.wanted -= 1
                if group.wanted == 0:
                    for other in group.rows:
                        self._cut(other)

    def _cut(self, row: _Row) -> None:
        if row.made is None:
            made = 0 if row.begin < 0 else max(0, math.floor(self._steps - row.begin + _ROUNDING))
            self._end(row, min(made, row.length), is_cut=True)

    def _end(self, row: _Row, tokens: int, is_cut: bool) -> None:
        if row.begin >= 0:
            self._rows -= 1
            self._context = max(0.0, self._context - row.group.prompt - tokens)
        row.made = MadeRow(self._versions(row.begin, tokens), is_cut)
        call = row.group.call
        call.left -= 1
        if call.left == 0 and not call.done.done():
            call.done.set_result(None)

    def _versions(self, begin: float, tokens: int) -> dict[int, int]:
        end = begin + tokens
        place = bisect_right(self._served, begin, key=lambda served: served[0]) - 1
        found: dict[int, int] = {}
        for (since, version), (until, _) in zip(
            self._served[max(0, place) :],
            [*self._served[max(0, place) + 1 :], (math.inf, -1)],
            strict=True,
        ):
            if since >= end and found:
                break
            count = round(min(end, until) - max(begin, since))
            if count > 0:
                found[version] = count
        return found or {self._served[-1][1]: 0}

    def _drop(self, groups: Sequence[_Group]) -> None:
        """Cuts what is left of a call that nobody waits for."""
        if any(row.made is None for group in groups for row in group.rows):
            self._advance()
            for group in groups:
                for row in group.rows:
                    self._cut(row)
            self._go_on()
