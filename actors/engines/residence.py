"""What an engine has on its device, and what may be asked of it then.

| state | weights | keys and values | may be asked |
| --- | --- | --- | --- |
| `serving` | yes | yes | `pause`, `wake`, `resume`, `score` |
| `paused` | yes | yes | `pause`, `sleep`, `wake`, `load`, `adapt`, `resume`, `score` |
| `asleep` | no | no | `pause`, `sleep`, `wake` |
| `empty` | room for them | room for them | `pause`, `sleep`, `wake`, `load` |

Requests are in none of this: they are kept, as tokens, in every state, and go on while `serving`.
So an engine that has slept serves nothing before it took weights, whole ones: `adapt` is to load an
adapter, which goes over weights that are there. Whether those are the right ones is the publisher's
proof. Owns the transitions only; freeing memory is the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

EngineState: TypeAlias = Literal["serving", "paused", "asleep", "empty"]
Word: TypeAlias = Literal["pause", "sleep", "wake", "load", "adapt", "resume", "score"]

TRANSITIONS: Final[Mapping[EngineState, Mapping[Word, EngineState]]] = {
    "serving": {"pause": "paused", "wake": "serving", "resume": "serving", "score": "serving"},
    "paused": {
        "pause": "paused",
        "sleep": "asleep",
        "wake": "paused",
        "load": "paused",
        "adapt": "paused",
        "resume": "serving",
        "score": "paused",
    },
    # Paused and woken twice is paused and awake: a publish need not know who slept.
    "asleep": {"pause": "asleep", "sleep": "asleep", "wake": "empty"},
    "empty": {"pause": "empty", "sleep": "asleep", "wake": "empty", "load": "paused"},
}

_FIRST: Final[Mapping[EngineState, str]] = {
    "serving": "call pause() first",
    "paused": "nothing is missing",
    "asleep": "it holds no weights, call wake() and load() first",
    "empty": "it holds no weights since it slept, call load() with whole ones first",
}


class WrongState(RuntimeError):
    """An engine was asked for what it cannot do in the state that it is in."""


class Residence:
    """An engine's state; it begins `serving`."""

    def __init__(self) -> None:
        self.state: EngineState = "serving"

    @property
    def is_serving(self) -> bool:
        return self.state == "serving"

    def check(self, word: Word) -> None:
        """Raises WrongState where `word` is not allowed now."""
        if word not in TRANSITIONS[self.state]:
            raise WrongState(f"{word}() while {self.state}: {_FIRST[self.state]}")

    def say(self, word: Word) -> None:
        """Moves on. Raises WrongState, and stays, where `word` is not allowed now."""
        self.check(word)
        self.state = TRANSITIONS[self.state][word]
