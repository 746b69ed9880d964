"""Who is in a run, at any moment, from all of its pools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from manta.actors.alive import Alive
from manta.orchestrator.build import Crew
from manta.orchestrator.health_watch import Member

if TYPE_CHECKING:
    from ray.actor import ActorHandle


def roster(crew: Crew) -> list[Member]:
    """Every worker that the driver has started and not let go. Learner ranks are Ray Train's."""
    client, references = crew.client, crew.references
    posts: Mapping[str, ActorHandle[Alive]] = {
        "router": cast("ActorHandle[Alive]", crew.rollout.router),
        "mailbox": cast("ActorHandle[Alive]", client.mailbox),
        "weight_store": cast("ActorHandle[Alive]", client.weight_store),
    }
    return [
        *_members("rollout", crew.rollout.members()),
        *_members("environment", crew.environment.seats.members()),
        *_members("reward", crew.rewards.seats.members()),
        *_members("reference", references.seats.members() if references else {}),
        *(each for seats in crew.scorers.seats for each in _members("scorer", seats.members())),
        *(Member(name, name, handle) for name, handle in posts.items()),
    ]


def _members(role: str, handles: Mapping[str, ActorHandle[Any]]) -> Iterator[Member]:
    for name, handle in handles.items():
        yield Member(role, name, cast("ActorHandle[Alive]", handle))
