"""Trajectories end to end: the form in which they travel, a few buffers instead of three each.

A step has thousands of small arrays; moving each on its own costs more than computing them. Owns
the packed form and nothing of what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from manta.envs.records import (
    Bool,
    Companion,
    Completion,
    FinishReason,
    Float32,
    GroupId,
    Int32,
    ReferenceStatistics,
    Score,
    ScoredGroup,
    Shown,
    Task,
    Trajectory,
    VersionSpan,
)

Number = TypeVar("Number", bound=np.generic)

_REST = (
    "task_id", "sample", "model", "weight_versions", "turns", "finish_reason", "artifact",
    "parent", "payload", "media", "env_info",
)  # fmt: skip
_Rest: TypeAlias = tuple[object, ...]
_CompletionRest: TypeAlias = tuple[
    tuple[VersionSpan, ...], FinishReason, dict[str, npt.NDArray[np.generic]]
]


@dataclass(frozen=True, slots=True)
class PackedTrajectories:
    """n trajectories: `lengths` int32[n]; tokens, masks and log-probs back to back.

    `logprobs` holds those of the trajectories that have them (`has_logprobs` bool[n]), in order.
    """

    lengths: Int32
    token_ids: Int32
    loss_mask: Bool
    has_logprobs: Bool
    logprobs: Float32
    rest: tuple[_Rest, ...]

    def unpack(self) -> tuple[Trajectory, ...]:
        """The trajectories; their arrays are views."""
        ends = list(accumulate(self.lengths.tolist(), initial=0))
        trajectories = []
        start = 0
        for (low, high), known, rest in zip(
            pairwise(ends), self.has_logprobs.tolist(), self.rest, strict=True
        ):
            logprobs = None
            if known:
                logprobs = self.logprobs[start : start + high - low]
                start += high - low
            fields = dict(zip(_REST, rest, strict=True))
            trajectories.append(
                Trajectory(
                    token_ids=self.token_ids[low:high],
                    loss_mask=self.loss_mask[low:high],
                    logprobs=logprobs,
                    **fields,  # type: ignore[arg-type]
                )
            )
        return tuple(trajectories)


def pack(trajectories: Sequence[Trajectory]) -> PackedTrajectories:
    known = [t.logprobs for t in trajectories if t.logprobs is not None]
    return PackedTrajectories(
        lengths=np.array([len(t.token_ids) for t in trajectories], np.int32),
        token_ids=_joined([t.token_ids for t in trajectories], np.int32),
        loss_mask=_joined([t.loss_mask for t in trajectories], np.bool_),
        has_logprobs=np.array([t.logprobs is not None for t in trajectories], np.bool_),
        logprobs=_joined(known, np.float32),
        rest=tuple(tuple(getattr(t, name) for name in _REST) for t in trajectories),
    )


@dataclass(frozen=True, slots=True)
class PackedShown:
    """What scorers are asked about: entry i is `counts[i]` trajectories of `tasks[i]`."""

    tasks: tuple[Task, ...]
    counts: tuple[int, ...]
    trajectories: PackedTrajectories

    def unpack(self) -> list[Shown]:
        flat = iter(self.trajectories.unpack())
        return [
            Shown(task, tuple(islice(flat, count)))
            for task, count in zip(self.tasks, self.counts, strict=True)
        ]


def pack_shown(shown: Sequence[Shown]) -> PackedShown:
    return PackedShown(
        tuple(each.task for each in shown),
        tuple(len(each.trajectories) for each in shown),
        pack([trajectory for each in shown for trajectory in each.trajectories]),
    )


@dataclass(frozen=True, slots=True)
class PackedCompletions:
    """Completions of several requests: `counts` by request, `lengths` int32[n] by completion,
    tokens and log-probs back to back."""

    counts: tuple[int, ...]
    lengths: Int32
    token_ids: Int32
    logprobs: Float32
    rest: tuple[_CompletionRest, ...]

    def unpack(self) -> list[list[Completion]]:
        """The completions by request; their arrays are views."""
        ends = accumulate(self.lengths.tolist(), initial=0)
        flat = iter(
            [
                Completion(self.token_ids[low:high], self.logprobs[low:high], *rest)
                for (low, high), rest in zip(pairwise(ends), self.rest, strict=True)
            ]
        )
        return [list(islice(flat, count)) for count in self.counts]


def pack_completions(completions: Sequence[Sequence[Completion]]) -> PackedCompletions:
    flat = [completion for of_request in completions for completion in of_request]
    return PackedCompletions(
        counts=tuple(len(of_request) for of_request in completions),
        lengths=np.array([len(c.token_ids) for c in flat], np.int32),
        token_ids=_joined([c.token_ids for c in flat], np.int32),
        logprobs=_joined([c.logprobs for c in flat], np.float32),
        rest=tuple((c.weight_versions, c.finish_reason, dict(c.extras)) for c in flat),
    )


@dataclass(frozen=True, slots=True)
class PackedScores:
    """Scores without their columns; of each its columns' names and lengths, and all of these back
    to back."""

    bare: tuple[Score, ...]
    columns: tuple[tuple[tuple[str, int], ...], ...]
    values: Float32

    def unpack(self) -> tuple[Score, ...]:
        """The scores; their columns are views."""
        scores, start = [], 0
        for score, columns in zip(self.bare, self.columns, strict=True):
            found = {}
            for name, length in columns:
                found[name] = self.values[start : start + length]
                start += length
            scores.append(replace(score, columns=found) if found else score)
        return tuple(scores)


def pack_scores(scores: Sequence[Score]) -> PackedScores:
    return PackedScores(
        tuple(replace(score, columns={}) if score.columns else score for score in scores),
        tuple(
            tuple((name, len(column)) for name, column in score.columns.items()) for score in scores
        ),
        _joined([column for score in scores for column in score.columns.values()], np.float32),
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Groups that travel together."""

    groups: tuple[ScoredGroup, ...]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the trajectories of all groups as one `PackedTrajectories`, and the scores."""
        trajectories = [t for group in self.groups for t in group.rows]
        scores = pack_scores([score for group in self.groups for score in group.row_scores])
        references = [
            logprobs
            for group in self.groups
            for logprobs in group.row_references
            if logprobs is not None
        ]
        rest = tuple(
            (
                group.id,
                group.task,
                len(group.trajectories),
                None if group.reference is None else group.reference.version,
                dict(group.reward_versions),
                dict(group.timings),
                group.cut_off,
                group.companion is not None,
                group.row_references[-1] is not None,
            )
            for group in self.groups
        )
        return _block, (pack(trajectories), scores, _joined(references, np.float32), rest)


_GroupRest: TypeAlias = tuple[
    GroupId,
    Task,
    int,
    str | None,
    dict[str, str],
    dict[str, float],
    tuple[int, ...],
    bool,
    bool,
]


def _block(
    packed: PackedTrajectories,
    packed_scores: PackedScores,
    references: Float32,
    rest: tuple[_GroupRest, ...],
) -> Block:
    trajectories, row_scores = packed.unpack(), packed_scores.unpack()
    groups = []
    first = start = 0
    for name, task, count, version, reward_versions, timings, cut_off, *of_companion in rest:
        has_companion, is_compared = of_companion
        own, scores = trajectories[first : first + count], row_scores[first : first + count]
        first += count
        companion = None
        if has_companion:
            companion = Companion(trajectories[first], row_scores[first])
            first += 1
        reference = None
        if version is not None:
            ends = list(accumulate((len(t.token_ids) for t in own), initial=start))
            start = ends[-1]
            reference = ReferenceStatistics(
                version, tuple(references[low:high] for low, high in pairwise(ends))
            )
            if companion is not None and is_compared:
                end = start + len(companion.trajectory.token_ids)
                companion = replace(companion, reference_logprobs=references[start:end])
                start = end
        groups.append(
            ScoredGroup(
                name, task, own, scores, reference, reward_versions, timings, cut_off, companion
            )
        )
    return Block(tuple(groups))


def _joined(arrays: Sequence[npt.NDArray[Number]], dtype: type[Number]) -> npt.NDArray[Number]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
