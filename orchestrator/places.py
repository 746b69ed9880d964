"""Workers that no node has room for yet: the demand that Ray's autoscaler sees.

Owns the look into Ray's control store. That such a worker is not frozen is
`manta.orchestrator.health`'s to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import ray
from ray._private.state import state
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from manta.orchestrator.job_actors import this_job
from manta.orchestrator.role_resources import SHARE

Need: TypeAlias = frozenset[tuple[str, float]]
"""Amounts by resource."""


def waiting_for_nodes() -> dict[str, str]:
    """By actor (its id in hex), the workers of this driver that have no place yet, with what each
    asks for, in words. Takes a few calls of the control store: not for an event loop.

    An actor that has a place and no process yet looks the same in the table of actors: only what
    nodes cannot place is a demand.
    """
    needs = {actor: need for actor, need in _without_process().items() if need}
    if not needs:
        return {}
    demands = _demands()
    return {actor: _told(need) for actor, need in needs.items() if need in demands}


def _without_process() -> dict[str, Need]:
    """Actors of this driver that are to be created, and have no worker process."""
    # Ray's public way asks the dashboard, which a cluster need not have
    rows = state._connect_and_get_accessor().get_actor_table(this_job(), "PENDING_CREATION")
    actors = [ActorTableData.FromString(row) for row in rows]
    return {
        actor.actor_id.hex(): _need(actor.required_resources)
        for actor in actors
        if _is_nil(actor.address.worker_id)
    }


def _demands() -> set[Need]:
    client = internal_kv_get_gcs_client()  # type: ignore[no-untyped-call]
    pending = get_cluster_resource_state(client).pending_resource_requests
    return {_need(each.request.resources_bundle) for each in pending}


def _is_nil(worker: bytes) -> bool:
    return not worker or bool(ray.WorkerID(worker).is_nil())


def _need(resources: Mapping[str, float]) -> Need:
    return frozenset((name, round(amount, 4)) for name, amount in resources.items() if amount)


def _told(need: Need) -> str:
    """`2 CPU, rollout_node`."""
    parts = sorted(need, key=lambda part: (part[1] == SHARE, part[0]))
    return ", ".join(name if amount == SHARE else f"{amount:g} {name}" for name, amount in parts)
