"""The terminal: a live view of the run, or one plain line per step where nobody watches.

Owns what is shown and how often. Everything shown is handed in; nothing here asks anybody, and
`update` only stores, so that the driver's loop never waits for a terminal.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from manta.orchestrator.summary import duration

_BAR_WIDTH = 30
_EVENTS = 4
_STEPS_FOR_PACE = 20
_FAINT = "bright_black"
_STEP_LINE = re.compile(r"^\[[^]]*\] (?P<stage>\S+) (?P<step>\d+)/(?P<of>\d+)(?: \||$)")


@dataclass(frozen=True, slots=True)
class DisplayState:
    """One moment. `step` counts the run's steps, `stage_step` the stage's; None is not (yet) known.

    `engine_rows` are the samples that engines have right now; `calls_waiting` have no engine yet,
    the recent ones up to `longest_wait` seconds. `waiting_since` is a `time.monotonic()` reading.
    """

    stage: str
    stage_step: int
    stage_steps: int
    step: int
    seconds: float
    reward: float | None = None
    accuracy: float | None = None
    kl: float | None = None
    staleness: float | None = None
    tokens_per_second: float | None = None
    samples_per_second: float | None = None
    groups_in_flight: int = 0
    groups_ready: int = 0
    engine_rows: int = 0
    calls_waiting: int = 0
    longest_wait: float = 0.0
    waiting_for: str | None = None
    waiting_since: float = 0.0


class Display:
    """A context manager around the run. On a terminal it redraws once a second from a thread of
    its own, so that "waiting for ... since" counts on while the driver is stuck."""

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        """`total_steps` are the whole run's, over all stages."""
        self._total_steps = total_steps
        self._console = console or Console()
        self._state: DisplayState | None = None
        self._bar = "-" if self._console.options.ascii_only else "\u2501"
        # The redraw thread reads these: they are replaced, never changed in place.
        self._events: tuple[str, ...] = ()
        self._seconds_per_step: float | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_STEPS_FOR_PACE)
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=1, get_renderable=self.render
            )

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, state: DisplayState) -> None:
        """Shows `state` at the next redraw; without a terminal, prints it if it is a new step."""
        before, self._state = self._state, state
        stage_changed = before is None or before.stage != state.stage
        if stage_changed:
            self._recent.clear()
        if before is None or stage_changed or before.step != state.step:
            self._recent.append((state.seconds, state.stage_step))
            self._seconds_per_step = self._pace()
            if self._live is None and state.stage_step > 0:
                self._print(step_line(state))

    def event(self, text: str) -> None:
        """Shows `text` among the last events; without a terminal, prints it."""
        seconds = self._state.seconds if self._state else 0.0
        line = f"[{duration(seconds)}] {text}"
        self._events = (*self._events, line)[-_EVENTS:]
        if self._live is None:
            self._print(line)

    def render(self) -> Text:
        """The live view. One `Text`: tables cost several times as much per redraw."""
        state = self._state
        if state is None:
            return Text("\n".join(["starting up", *self._events]))
        text = Text(no_wrap=True, overflow="ellipsis")
        for part, style in self._parts(state):
            text.append(part, style)
        return text

    def _parts(self, state: DisplayState) -> Iterator[tuple[str, str]]:
        yield state.stage, "bold"
        if state.stage_steps:
            yield from self._bar_parts(state)
        yield f"\nrun step {state.step}/{self._total_steps}, {duration(state.seconds)}\n", _FAINT
        for name, value in _figures(state):
            yield f"{name} ", _FAINT
            yield f"{value}   ", "bold"
        yield "\ngroups ", _FAINT
        yield f"{state.groups_in_flight} in flight, {state.groups_ready} ready   ", ""
        yield "engine rows ", _FAINT
        yield f"{state.engine_rows}", ""
        if state.calls_waiting:
            wait = duration(state.longest_wait)
            yield f", {state.calls_waiting} calls wait (longest {wait})", "yellow"
        yield "\n", ""
        if state.waiting_for is not None:
            waited = max(0.0, time.monotonic() - state.waiting_since)
            yield f"waiting for {state.waiting_for}, {duration(waited)}", "yellow"
        for event in self._events:
            yield f"\n{event}", _FAINT

    def _bar_parts(self, state: DisplayState) -> Iterator[tuple[str, str]]:
        """How far the stage is, and how long it will take."""
        share = min(state.stage_step / state.stage_steps, 1.0)
        filled = round(_BAR_WIDTH * share)
        yield f" {state.stage_step}/{state.stage_steps} ", ""
        yield self._bar * filled, "green"
        yield self._bar * (_BAR_WIDTH - filled), "bright_black"
        yield f" {share:.0%}", ""
        if self._seconds_per_step is not None:
            left = self._seconds_per_step * max(0, state.stage_steps - state.stage_step)
            yield f", {duration(left)} left", ""

    def _pace(self) -> float | None:
        """Seconds per step over the stage's last steps; None before there are two."""
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (end - start) / (last - first) if last > first else None

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def step_line(state: DisplayState) -> str:
    """A step as one line of a log."""
    figures = " | ".join(f"{name} {value}" for name, value in _figures(state))
    head = f"[{duration(state.seconds)}] {state.stage} {state.stage_step}/{state.stage_steps}"
    return f"{head} | {figures}" if figures else head


def read_step_line(line: str) -> tuple[str, int, int] | None:
    """(stage, its step, its steps) of what `step_line` made; None where it is another line."""
    found = _STEP_LINE.match(line)
    return None if found is None else (found["stage"], int(found["step"]), int(found["of"]))


def _figures(state: DisplayState) -> Iterator[tuple[str, str]]:
    """What is known, named and formatted."""
    shown = (
        ("reward", state.reward, ".3f"),
        ("held-out", state.accuracy, ".1%"),
        ("tokens/s", state.tokens_per_second, ",.0f"),
        ("samples/s", state.samples_per_second, ",.1f"),
        ("KL", state.kl, ".2g"),
        ("staleness", state.staleness, ".1f"),
    )
    for name, value, form in shown:
        if value is not None:
            yield name, format(value, form)
