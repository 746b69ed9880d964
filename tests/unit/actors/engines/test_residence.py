"""An engine's states: what may be asked when."""

from __future__ import annotations

import itertools

import pytest

from manta.actors.engines.residence import TRANSITIONS, Residence, Word, WrongState

WORDS: tuple[Word, ...] = ("pause", "sleep", "wake", "load", "adapt", "resume", "score")


def test_a_turn_goes_through_every_state() -> None:
    residence = Residence()
    seen = []
    for word in ("pause", "sleep", "wake", "load", "resume"):
        residence.say(word)  # type: ignore[arg-type]
        seen.append(residence.state)
    assert seen == ["paused", "asleep", "empty", "paused", "serving"]


def test_whoever_slept_serves_nothing_before_it_took_weights() -> None:
    for words in itertools.product(WORDS, repeat=5):
        residence = slept()
        for index, word in enumerate(words):
            before = residence.state
            if word in TRANSITIONS[before]:
                residence.say(word)
            else:
                with pytest.raises(WrongState, match=rf"{word}\(\) while {before}: \w+"):
                    residence.say(word)
                assert residence.state == before
            if "load" not in words[: index + 1]:
                assert residence.state in ("asleep", "empty")
                with pytest.raises(WrongState):
                    residence.check("score")


def slept() -> Residence:
    residence = Residence()
    residence.say("pause")
    residence.say("sleep")
    return residence
