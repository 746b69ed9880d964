"""News of who there is, to workers that hear it in another order than it was said."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from manta.actors.reward import RewardWorker
from manta.actors.scorer_client import ScorerPlace

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from manta.actors.scorer import ScorerWorker


def place(workers: int) -> ScorerPlace:
    """Of workers that nobody calls."""
    handles = tuple(cast("ActorHandle[ScorerWorker]", object()) for _ in range(workers))
    return ScorerPlace("judge", handles, 1.0)


async def test_what_was_said_earlier_and_comes_later_changes_nothing() -> None:
    worker = RewardWorker([place(1)])
    known = []
    for edition, workers in ((1, 0), (3, 2), (2, 0), (4, 3)):
        await worker.meet(edition, [place(workers)])
        known.append(len(worker._scorers["judge"]._living))
    assert known == [0, 2, 2, 3]
