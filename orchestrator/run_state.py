"""The driver's side of a checkpoint: where the run stands, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manta.envs.records import GroupId
from manta.orchestrator.curriculum import CurriculumState, KeptOrder
from manta.orchestrator.feed import FeedState


@dataclass(frozen=True, slots=True)
class RunState:
    """`step` counts over all stages, `stage_step` within one.

    `ends_stage`: this is the stage's product, kept for good (references and later stages use it).
    `score` is the metric at this step that tells the best checkpoints, if it was measured.
    """

    step: int
    stage: str
    stage_step: int
    ends_stage: bool
    feed: FeedState | None
    ledger_position: int
    metrics_position: int
    incarnation: int
    score: float | None = None


def run_state(fields: Mapping[str, object]) -> RunState:
    """What `dataclasses.asdict` made of a state, and JSON of that.

    Raises TypeError, KeyError or ValueError where it is something else.
    """
    feed = fields["feed"]
    parsed = None
    if isinstance(feed, dict):
        parsed = FeedState(
            feed["epoch"],
            feed["position"],
            tuple(GroupId(*group) for group in feed["outstanding"]),
            feed.get("median_length"),
            _curriculum(feed.get("curriculum")),
        )
    return RunState(**{**fields, "feed": parsed})  # type: ignore[arg-type]


def _curriculum(fields: object) -> CurriculumState | None:
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise TypeError(f"no curriculum: {fields!r}")
    orders = tuple(KeptOrder(**order) for order in fields["orders"])
    return CurriculumState(**{**fields, "orders": orders})
