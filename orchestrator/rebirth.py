"""Whether the end of one life of the driver is followed by another in the same command.

A life that ends because workers are gone or hang, and nothing within it can take their place,
begins anew from the newest checkpoint, as a resume does. Mistakes of the run file, checkpoints that
cannot be written, a guard that stops the run and Ctrl-C are no such end. Owns the count and the
choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import ray

from manta.orchestrator.evaluate import EvaluationLost
from manta.orchestrator.learner_group import LearnerLost
from manta.orchestrator.publish import EnginesDied
from manta.orchestrator.reference_pool import ReferenceLost
from manta.orchestrator.seats import NoWorkerLeft
from manta.orchestrator.supply import GroupsLost
from manta.orchestrator.wait import DeadlineMissed

_HEALED = (
    LearnerLost,
    EvaluationLost,
    GroupsLost,
    EnginesDied,
    NoWorkerLeft,
    ReferenceLost,
    DeadlineMissed,
    ray.exceptions.RayActorError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.RaySystemError,
)


class Rebirths:
    """`most` in a row without a newly committed checkpoint."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0
        self._step: int | None = None

    @property
    def have_begun(self) -> bool:
        """Has a life followed another?"""
        return self._in_a_row > 0

    def follows(self, error: BaseException, step: int) -> bool:
        """Does another life follow one that `error` ended, with the checkpoint of `step` the newest
        (0: none)?"""
        if self._step is None or step > self._step:
            self._in_a_row, self._step = 0, step
        if not all(isinstance(each, _HEALED) for each in leaves(error)):
            return False
        self._in_a_row += 1
        return self._in_a_row <= self._most


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The innermost errors of nested groups; `error` itself where it is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def causes(error: BaseException) -> str:
    """The innermost errors of nested groups, one a line."""
    return "\n".join(dict.fromkeys(f"{type(each).__name__}: {each}" for each in leaves(error)))
