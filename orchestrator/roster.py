"""Who is in a run, at any moment, from all of its pools."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from manta.actors.alive import Alive
from manta.orchestrator.build import Crew
from manta.orchestrator.health_watch import Member
from manta.orchestrator.seats import Seats

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
    seated: list[tuple[str, Seats[Any]]] = [
        ("environment", crew.environment.seats),
        ("reward", crew.rewards.seats),
        *(("scorer", seats) for seats in crew.scorers.seats),
    ]
    if references is not None:
        seated.append(("reference", references.seats))
    serving: Collection[str] = ()
    if crew.rollout.seats is not None:
        serving = crew.rollout.seats.workers()
    return [
        *_members("rollout", crew.rollout.members(), serving),
        *(
            each
            for role, seats in seated
            for each in _members(role, seats.members(), seats.workers())
        ),
        *(Member(name, name, handle) for name, handle in posts.items()),
    ]


def _members(
    role: str, handles: Mapping[str, ActorHandle[Any]], serving: Collection[str]
) -> Iterator[Member]:
    for name, handle in handles.items():
        yield Member(role, name, cast("ActorHandle[Alive]", handle), name in serving)
