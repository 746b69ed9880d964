"""Why a learner group ended, told to the mailbox from where Ray Train sees it: its controller.

Owns how errors of ranks are told apart. What follows is the driver's decision
(`manta.orchestrator.learner_group`).
"""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray.actor import ActorHandle
from ray.train import UserCallback

from manta.actors.mailbox import Mailbox
from manta.actors.step_work import Fall, FallKind

_LONGEST = 400


class GroupsLost(RuntimeError):
    """What a rank has to work on is gone, with the node that held it."""


class LearnerFalls(UserCallback):
    """Ray Train calls it in the controller's process, before it starts the next group."""

    def __init__(self, mailbox: ActorHandle[Mailbox]) -> None:
        self._mailbox = mailbox
        self._told: tuple[str, ...] = ()

    def after_exception(
        self, run_context: object, worker_exceptions: Mapping[int, Exception]
    ) -> None:
        fall = fall_of(worker_exceptions)
        # While a node is being preempted the same dead actors are told at every look
        if fall.causes == self._told and fall.kind == "died":
            return
        self._told = fall.causes
        ray.get(self._mailbox.fell.remote(fall))


def fall_of(errors: Mapping[int, BaseException]) -> Fall:
    """The fall of a group whose ranks met `errors`, by rank."""
    kind: FallKind = "died"
    found = [_innermost(error) for error in errors.values()]
    if any(_is_gone(error) for error in errors.values()):
        kind = "lost"
    elif any(isinstance(error, ValueError) for error in found):
        kind = "refused"
    causes = [f"rank {rank}: {_in_words(error)}" for rank, error in zip(errors, found, strict=True)]
    return Fall(kind, tuple(causes))


def _is_gone(error: BaseException) -> bool:
    """Has a rank raised that what it works with is no more: its groups, or another actor?"""
    inner = _innermost(error)
    has_died = getattr(error, "health_check_failure", None) is not None
    return not has_died and isinstance(inner, GroupsLost | ray.exceptions.RayActorError)


def _innermost(error: BaseException) -> BaseException:
    """What Ray and Ray Train wrap: a rank's own error, or its actor's death."""
    inner = getattr(error, "health_check_failure", None) or getattr(error, "cause", None)
    return _innermost(inner) if isinstance(inner, BaseException) else error


def _in_words(error: BaseException) -> str:
    if isinstance(error, ray.exceptions.RayActorError):
        text = _of_actor(str(error))
        return f"its process ended ({text})" if text else "its process ended"
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:_LONGEST]}"


def _of_actor(text: str) -> str:
    """The actor's id and process, of what Ray tells about its death."""
    words = [line.strip() for line in text.split("\n")]
    kept = [w for w in words if w.startswith(("actor_id:", "pid:", "ip:"))]
    return ", ".join(word.replace("\t", " ") for word in kept)
