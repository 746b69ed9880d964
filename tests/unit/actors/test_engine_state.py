from __future__ import annotations

import itertools

import pytest

from manta.actors.engine_state import TRANSITIONS, EngineState, Word, after

WORDS: tuple[Word, ...] = ("join", "pause", "serve", "drain", "lose")
AFTER: dict[EngineState, tuple[EngineState, ...]] = {
    "joining": ("joining", "joining", "serving", "gone", "gone"),
    "serving": ("joining", "paused", "serving", "draining", "gone"),
    "paused": ("joining", "paused", "serving", "draining", "gone"),
    "draining": ("joining", "draining", "draining", "draining", "gone"),
    "gone": ("joining", "gone", "gone", "gone", "gone"),
}


@pytest.mark.parametrize(("state", "place"), list(itertools.product(AFTER, range(5))))
def test_every_word_in_every_state(state: EngineState, place: int) -> None:
    assert after(state, WORDS[place]) == AFTER[state][place]


def test_there_are_no_other_states_or_words() -> None:
    assert set(TRANSITIONS) == set(AFTER)
    assert all(set(words) == set(WORDS) for words in TRANSITIONS.values())


def test_only_proof_leads_into_service() -> None:
    into = {(s, w) for s, words in TRANSITIONS.items() for w in WORDS if words[w] == "serving"}
    assert into == {("joining", "serve"), ("serving", "serve"), ("paused", "serve")}
