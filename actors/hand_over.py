"""The order to hand weights over from learner ranks to engines, and what came of it.

Travels through the mailbox, driver to ranks and back. How a rank obeys is `manta.actors.meeting`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manta.actors.weights import Receipt
from manta.envs.records import WeightVersion

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from manta.actors.rollout import RolloutWorker


@dataclass(frozen=True, slots=True)
class Receiver:
    """A paused engine, by name, whose `num_processes` worker processes each get the weights."""

    name: str
    worker: ActorHandle[RolloutWorker]
    num_processes: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """To every learner rank that holds `version`: bring it to `receivers` or, where that is None,
    in full to the weight store. `number` counts up within a run."""

    number: int
    version: WeightVersion
    receivers: tuple[Receiver, ...] | None

    def is_for(self, incarnation: int, handed: int) -> bool:
        """Has a rank of `incarnation` that obeyed orders up to `handed` yet to obey this one?"""
        return self.number > handed and self.version.incarnation == incarnation


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A rank's answer. `receipts` by engine, from rank 0; a `failure` says why there are none.
    `num_bytes` is what one worker process got."""

    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    num_bytes: int = 0
    failure: str = ""
