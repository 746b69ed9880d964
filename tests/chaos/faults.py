"""Faults, drawn from a seed: what happens to whom, and when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["kill", "freeze", "stall", "lose node"]
"""One that stalls goes on by itself, before anybody takes it for frozen."""

WORKERS = {
    "rollout": "RolloutWorker",
    "environment": "EnvironmentWorker",
    "reward": "RewardWorker",
    "reference": "ReferenceWorker",
    "learner": "RayTrainWorker",
    "controller": "TrainController",
    "router": "Router",
    "mailbox": "Mailbox",
    "weight_store": "WeightStore",
}
"""By role the class of its actors, which their processes are named after."""

ON_THE_HEAD = ("controller", "router", "mailbox", "weight_store")
"""Without one of these the run begins anew. Their node is not lost: the driver stands there too."""

DRIVER = "driver"
LATEST_SECONDS = 0.6
"""A step of the small run takes less, so that a fault meets any phase of one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`delay_seconds` after the run's metrics hold `step`, this happens to a worker of `role`, or
    to the node that it is on; `choice` picks among several."""

    step: int
    delay_seconds: float
    kind: Kind
    role: str
    choice: int

    def __str__(self) -> str:
        return f"{self.kind} {self.role} at step {self.step} + {self.delay_seconds:.2f} s"


@dataclass(frozen=True, slots=True)
class Hit:
    """What became of a planned fault: in words what was done, or why nothing was."""

    fault: Fault
    what: str
    is_delivered: bool

    def __str__(self) -> str:
        return f"{self.fault}: {self.what}"


def schedule(
    seed: int, number: int, last_step: int, roles: Sequence[str], kinds: Sequence[Kind]
) -> tuple[Fault, ...]:
    """`number` faults in the order they happen, each one that can happen to its role.

    Raises ValueError where none of `kinds` can happen to any of `roles`.
    """
    possible = {role: found for role in roles if (found := _kinds_for(role, kinds))}
    if not possible:
        raise ValueError(f"none of {', '.join(kinds)} can happen to any of {', '.join(roles)}")
    draw = random.Random(seed)
    faults = []
    for _ in range(number):
        role = draw.choice(list(possible))
        faults.append(
            Fault(
                step=draw.randint(0, last_step),
                delay_seconds=draw.uniform(0.0, LATEST_SECONDS),
                kind=draw.choice(possible[role]),
                role=role,
                choice=draw.randrange(1 << 16),
            )
        )
    return tuple(sorted(faults, key=lambda fault: fault.step))


def _kinds_for(role: str, kinds: Sequence[Kind]) -> Sequence[Kind]:
    """The driver is only ever killed."""
    if role == DRIVER:
        return ("kill",)
    return [kind for kind in kinds if kind != "lose node" or role not in ON_THE_HEAD]
