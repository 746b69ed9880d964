"""How old what trains may be, and what becomes of what is older.

Owns the rule, over summaries. Slots and order, which bound the age to begin with, are the feed's;
the tokens themselves are left out on the ranks (`manta.actors.rows`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from manta.actors.engines.settings import WhenTooOld
from manta.envs.records import GroupSummary


@dataclass(frozen=True, slots=True)
class AgePolicy:
    """Tokens sampled more than `limit` steps before the weights that learn from them are too old;
    without a limit none are.

    `wait`: the feed lets nothing become too old. `drop_and_replace`: a group with a token that is
    too old is dropped and made anew. `mask_tokens`: such tokens leave the loss, and the group
    trains on the others.
    """

    limit: int | None = None
    when_too_old: WhenTooOld = "wait"

    @property
    def drops(self) -> bool:
        """Does it ever drop a group?"""
        return self.limit is not None and self.when_too_old == "drop_and_replace"

    def why_dropped(self, step: int, summary: GroupSummary) -> str | None:
        """Why a group is not to train at `step` for its age, or None."""
        if self.limit is None or not self.drops or summary.oldest is None:
            return None
        age = step - 1 - summary.oldest.step
        if age <= self.limit:
            return None
        return f"too old: {age} steps, at most {self.limit} may train"

    def oldest_that_trains(self, step: int) -> int | None:
        """The step of the oldest weights whose tokens train at `step`; None: age masks nothing."""
        if self.limit is None or self.when_too_old != "mask_tokens":
            return None
        return step - 1 - self.limit


NO_LIMIT = AgePolicy()


def without_older(summary: GroupSummary, oldest: int) -> GroupSummary:
    """`summary` without the trained tokens of weights before step `oldest`."""
    young = {
        version: count_n
        for version, count_n in summary.tokens_by_version.items()
        if version.step >= oldest
    }
    if len(young) == len(summary.tokens_by_version):
        return summary
    left_n = sum(young.values(), start=summary.num_tokens * 0)
    return replace(
        summary,
        num_tokens=left_n,
        tokens_by_version=young,
        num_too_old=int((summary.num_tokens - left_n).sum()),
    )
