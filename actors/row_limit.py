"""How many rows an engine may have at once: a fixed number, or one that follows its speed.

Owns the number. Who is held back by it is `manta.actors.leases`.
"""

from __future__ import annotations

from typing import Protocol

WINDOW_SECONDS = 2.0
DECREASE = 0.8
LEAST_GAIN = 0.5
"""Of the gain that as many more rows would bring if each were as fast as before."""


class RowLimit(Protocol):
    rows: int

    def note(self, tokens: int, is_pressed: bool, now: float) -> None:
        """A call has ended, with `tokens` new ones, at second `now`; `is_pressed` says that more
        rows wait than may come in."""
        ...


class FixedLimit:
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def note(self, tokens: int, is_pressed: bool, now: float) -> None:
        return


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the increase and
    decrease algorithms for congestion avoidance", Computer Networks and ISDN Systems 17, 1989).

    What tells of congestion is the engine's own speed: where, of two windows, the one with more
    rows has gained less than `LEAST_GAIN` of their share of tokens per second, they lie beyond the
    knee. Windows in which nothing waited say nothing about more rows, and change nothing.
    """

    def __init__(self, most: int, start: int, window_seconds: float = WINDOW_SECONDS) -> None:
        self.rows = min(start, most)
        self._most = most
        self._step = max(1, most // 16)
        self._window = window_seconds
        self._since: float | None = None
        self._tokens = 0
        self._was_pressed = True
        self._before: tuple[int, float] | None = None

    def note(self, tokens: int, is_pressed: bool, now: float) -> None:
        if self._since is None:
            self._since = now
            return
        self._tokens += tokens
        self._was_pressed &= is_pressed
        if now - self._since < self._window:
            return
        if self._was_pressed:
            self._move(self._tokens / (now - self._since))
        self._since, self._tokens, self._was_pressed = now, 0, True

    def _move(self, speed: float) -> None:
        rows, before = self.rows, self._before
        self._before = (rows, speed)
        if before is not None and rows != before[0]:
            (few, slow), (many, fast) = sorted(((rows, speed), before))
            if fast - slow < LEAST_GAIN * slow * (many - few) / few:
                self.rows = max(1, int(rows * DECREASE))
                return
        self.rows = min(rows + self._step, self._most)
