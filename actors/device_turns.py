"""Whose turn it is on the device that learner and engines share.

| state | owner | what is so | ends with |
| --- | --- | --- | --- |
| `training` | learner | engines sleep, or are not started yet | `wake`: it has offloaded |
| `waking` | engines | they take memory and new weights, and prove them | `serve`: all left do |
| `generating` | engines | they serve the newest weights, the learner is offloaded | `sleep` |
| `falling_asleep` | engines | they give their memory back | `train`: all left sleep |
| `broken` | unknown | a turn failed half way: nobody may take the next one | nothing |

Two owners never overlap because a turn is handed on by whoever ends it: engines wake only after the
learner said that it has offloaded, the learner starts only after the last engine sleeps. An engine
that dies holds nothing any more, so the turn goes on without it; every other failure `break`s.
Owns states, transitions and the time spent in each; frees and takes no memory itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

TurnState: TypeAlias = Literal["training", "waking", "generating", "falling_asleep", "broken"]
TurnWord: TypeAlias = Literal["wake", "serve", "sleep", "train", "break"]
Owner: TypeAlias = Literal["learner", "engines", "unknown"]

TRANSITIONS: Final[Mapping[TurnState, Mapping[TurnWord, TurnState]]] = {
    "training": {"wake": "waking", "break": "broken"},
    "waking": {"serve": "generating", "break": "broken"},
    "generating": {"sleep": "falling_asleep", "break": "broken"},
    "falling_asleep": {"train": "training", "break": "broken"},
    "broken": {"break": "broken"},
}

OWNERS: Final[Mapping[TurnState, Owner]] = {
    "training": "learner",
    "waking": "engines",
    "generating": "engines",
    "falling_asleep": "engines",
    "broken": "unknown",
}


class NotYourTurn(RuntimeError):
    """A turn was to be taken that is not the next one."""


class DeviceTurns:
    """Begins with the learner's turn: it builds its model before engines are started beside it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._seconds: dict[TurnState, float] = dict.fromkeys(TRANSITIONS, 0.0)
        self.state: TurnState = "training"

    @property
    def owner(self) -> Owner:
        return OWNERS[self.state]

    def say(self, word: TurnWord) -> None:
        """Moves on. Raises NotYourTurn, and stays, where `word` is not the next one."""
        if word not in TRANSITIONS[self.state]:
            known = ", ".join(TRANSITIONS[self.state])
            raise NotYourTurn(
                f"the shared device is {self.state} and belongs to the {self.owner}: "
                f"'{word}' is no way on from there ({known})"
            )
        self._count()
        self.state = TRANSITIONS[self.state][word]

    def take_metrics(self) -> dict[str, float]:
        """Seconds since the last call: engines awake and serving, asleep, and on the way between
        the two."""
        self._count()
        seconds, self._seconds = self._seconds, dict.fromkeys(TRANSITIONS, 0.0)
        return {
            "device/awake_seconds": seconds["generating"],
            "device/asleep_seconds": seconds["training"],
            "device/turning_seconds": seconds["waking"] + seconds["falling_asleep"],
        }

    def _count(self) -> None:
        now = self._clock()
        self._seconds[self.state] += now - self._since
        self._since = now
