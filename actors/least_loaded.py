"""Engines by their work, the least first: who gets a call, without a look at all of them.

Owns the order. Whether an engine takes a call is asked of the caller. An engine that was found to
have no room is set aside until it changes, or until a call comes that needs less room: while calls
wait, a look costs what has changed since the last one, not the number of engines.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

_SLACK = 64
"""Outdated entries that are not worth a clearing."""


class LeastLoaded:
    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        """Of the engines in the order, or set aside."""
        self._heap: list[tuple[int, str]] = []
        self._aside: dict[str, int] = {}
        """The rows for which an engine had no room."""

    def put(self, name: str, tokens: int) -> None:
        """The engine `name` is new, or has changed; it has `tokens` of work."""
        self._tokens[name] = tokens
        self._aside.pop(name, None)
        heapq.heappush(self._heap, (tokens, name))
        if len(self._heap) > 4 * len(self._tokens) + _SLACK:
            self._heap = [(t, n) for n, t in self._tokens.items() if n not in self._aside]
            heapq.heapify(self._heap)

    def remove(self, name: str) -> None:
        """The engine `name` is out of the order, if it was in it."""
        self._tokens.pop(name, None)
        self._aside.pop(name, None)

    def first(self, rows: int, takes: Callable[[str], bool]) -> str | None:
        """The least loaded engine, by name among equals, that `takes` a call of `rows` rows; who
        takes some rows takes fewer too."""
        for name in [name for name, refused in self._aside.items() if refused > rows]:
            self.put(name, self._tokens[name])
        while self._heap:
            tokens, name = self._heap[0]
            if self._tokens.get(name) == tokens and name not in self._aside:
                if takes(name):
                    return name
                self._aside[name] = rows
            heapq.heappop(self._heap)
        return None
