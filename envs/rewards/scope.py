"""What a reward component sees (one trajectory, a group, a whole step), and whom it asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from manta.envs.protocols import Scope

METHODS: dict[str, Scope] = {
    "score": "trajectory",
    "score_group": "group",
    "score_batch": "batch",
}


def scope_of(name: str, component: object) -> Scope:
    """The scope of the component called `name`: which of the three methods it has.

    Raises ValueError unless it has exactly one of them and a `version`.
    """
    found = [method for method in METHODS if callable(getattr(component, method, None))]
    if len(found) != 1:
        raise ValueError(
            f"reward {name!r} ({type(component).__name__}) has {found or 'none'} of the methods "
            f"{list(METHODS)}: a component has exactly one, which decides its scope"
        )
    if not isinstance(getattr(component, "version", None), str):
        raise ValueError(
            f"reward {name!r} ({type(component).__name__}) has no `version`: a text that names "
            "rule and parameters"
        )
    return METHODS[found[0]]


Score = TypeVar("Score", bound=Callable[..., object])
_AT_ONCE = "answers_at_once"


def at_once(score: Score) -> Score:
    """Marks a `score` that awaits nothing: it costs no task of its own, and has no deadline, which
    could not end it anyway. One that takes its place in a subclass has to say so itself."""
    setattr(score, _AT_ONCE, True)
    return score


def answers_at_once(component: object) -> bool:
    return getattr(getattr(component, "score", None), _AT_ONCE, False) is True


def rewards_within(component: object) -> bool:
    """Does it give a `Detail`, with something to say of parts of a trajectory?"""
    return getattr(component, "rewards_within", False) is True


def scorers_of(name: str, component: object) -> tuple[str, ...]:
    """The scorers that the component called `name` calls, by their names in the run file.

    Raises ValueError where its `scorers` are not a tuple of texts.
    """
    found = getattr(component, "scorers", ())
    if not isinstance(found, tuple) or not all(isinstance(each, str) for each in found):
        raise ValueError(
            f"reward {name!r} ({type(component).__name__}): `scorers` is {found!r}, it must be a "
            "tuple of names"
        )
    return found


def scorer_kind_of(component: object) -> str | None:
    """The kind of the scorers that a component calls; None where any will do."""
    found = getattr(component, "scorer_kind", None)
    return found if isinstance(found, str) else None
