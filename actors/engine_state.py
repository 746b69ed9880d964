"""What the router knows of an engine's service: a state, and the words that move it.

| state | gets requests | those it has | what it is |
| --- | --- | --- | --- |
| `joining` | no | none | started; has not proved which weights it serves |
| `serving` | yes | go on | proved |
| `paused` | no | are kept, and go on at `serve` | takes new weights |
| `draining` | no | go on to their end | leaves once it has none |
| `gone` | no | are lost, and made elsewhere | died, was ended, or has drained |

Owns the transitions only. Who says which word: the publisher `pause` and `serve`, whoever ends a
worker `drain` and `lose`, whoever starts one `join`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

EngineState: TypeAlias = Literal["joining", "serving", "paused", "draining", "gone"]
Word: TypeAlias = Literal["join", "pause", "serve", "drain", "lose"]

TRANSITIONS: Final[Mapping[EngineState, Mapping[Word, EngineState]]] = {
    "joining": {
        "join": "joining",
        "pause": "joining",
        "serve": "serving",
        "drain": "gone",
        "lose": "gone",
    },
    "serving": {
        "join": "joining",
        "pause": "paused",
        "serve": "serving",
        "drain": "draining",
        "lose": "gone",
    },
    "paused": {
        "join": "joining",
        "pause": "paused",
        "serve": "serving",
        "drain": "draining",
        "lose": "gone",
    },
    # What is published to an engine that drains is for the requests that it finishes.
    "draining": {
        "join": "joining",
        "pause": "draining",
        "serve": "draining",
        "drain": "draining",
        "lose": "gone",
    },
    # A late word does not bring a dead engine back: only a new life does.
    "gone": {"join": "joining", "pause": "gone", "serve": "gone", "drain": "gone", "lose": "gone"},
}


def after(state: EngineState, word: Word) -> EngineState:
    """The state that `word` leads to. Every word is allowed in every state: words cross on their
    way, and the one that comes late must do no harm."""
    return TRANSITIONS[state][word]
