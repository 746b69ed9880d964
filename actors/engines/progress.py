"""A look at a call of `generate` while it is under way.

Owns the meeting point: the engine says how to look, whoever has the other end looks. What becomes
of what was seen is `manta.actors.drafts`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from manta.envs.records import Completion

Read: TypeAlias = Callable[[], Awaitable[list[list[Completion]]]]


class Progress:
    """Handed to `Engine.generate`, which binds it before it waits for the first token."""

    def __init__(self) -> None:
        self._read: Read | None = None
        self._num_ended: Callable[[], int] | None = None

    def bind(self, read: Read, num_ended: Callable[[], int] | None = None) -> None:
        """`read` gives, for every sample of every request in order, the tokens sampled so far;
        `num_ended` how many samples have ended or were cut, at once and at no cost (None: not
        told)."""
        self._read = read
        self._num_ended = num_ended

    @property
    def num_ended(self) -> int:
        """Samples whose rows are free again, as far as the engine tells."""
        return 0 if self._num_ended is None else self._num_ended()

    async def read(self) -> list[list[Completion]]:
        """What is there now; empty where the engine has not begun.

        A sample that has not ended has the finish reason `abort`: this is how it would be cut.
        """
        return [] if self._read is None else await self._read()
