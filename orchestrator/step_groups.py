"""The groups that make up one step, in admission order, and where workers find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from manta.actors.step_scores import FinalScores, with_final
from manta.actors.step_work import Place
from manta.envs.records import GroupId, GroupSummary
from manta.orchestrator.age_policy import without_older
from manta.orchestrator.supply import BlockRef, Finished


class LeftOut(NamedTuple):
    """A group that was filtered while its step was collected."""

    summary: GroupSummary
    reason: str


@dataclass(frozen=True, slots=True)
class StepGroup:
    """`id` is that of the feed."""

    id: GroupId
    finished: Finished


@dataclass(frozen=True, slots=True)
class StepGroups:
    members: tuple[StepGroup, ...]

    @property
    def ids(self) -> list[GroupId]:
        return [group.id for group in self.members]

    @property
    def summaries(self) -> list[GroupSummary]:
        return [group.finished.summary for group in self.members]

    @property
    def blocks(self) -> tuple[BlockRef, ...]:
        """The blocks that hold the groups, each once."""
        return tuple(dict.fromkeys(group.finished.block for group in self.members))

    @property
    def places(self) -> tuple[Place, ...]:
        """Where each group is in `blocks`."""
        index = {block: i for i, block in enumerate(self.blocks)}
        return tuple((index[g.finished.block], g.finished.place) for g in self.members)

    def without_older(self, oldest: int | None) -> StepGroups:
        """The same groups without the tokens of weights before step `oldest` (None: all stay)."""
        if oldest is None:
            return self
        return StepGroups(
            tuple(
                replace(
                    g,
                    finished=replace(g.finished, summary=without_older(g.finished.summary, oldest)),
                )
                for g in self.members
            )
        )

    def scored(self, final: Sequence[FinalScores]) -> StepGroups:
        """The same groups under their final scores."""
        return StepGroups(
            tuple(
                replace(g, finished=replace(g.finished, summary=with_final(g.finished.summary, f)))
                for g, f in zip(self.members, final, strict=True)
            )
        )
