"""Trajectories end to end: the form in which they travel, a few buffers instead of three each.

A step has thousands of small arrays; moving each on its own costs more than computing them. Owns
the packed form and nothing of what it means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    Likeliest,
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
class PackedLikeliest:
    """What is likely where the trained tokens of some trajectories stand: `widths` int32[n], how
    many ids each has of a token; and the arrays of all back to back."""

    widths: Int32
    ids: Int32
    logprobs: Float32
    weights: Float32

    def unpack(self, counts: Iterable[int]) -> Iterator[Likeliest]:
        """By trajectory, of `counts` trained tokens; the arrays are views."""
        at_id = at_logprob = at_weight = 0
        for k, count in zip(self.widths.tolist(), counts, strict=True):
            ids = self.ids[at_id : at_id + count * k]
            logprobs = self.logprobs[at_logprob : at_logprob + count * (k + 1)]
            yield Likeliest(
                ids.reshape(count, k),
                logprobs.reshape(count, k + 1),
                self.weights[at_weight : at_weight + count],
            )
            at_id, at_logprob, at_weight = (
                at_id + len(ids),
                at_logprob + len(logprobs),
                at_weight + count,
            )


def _pack_likeliest(likeliest: Sequence[Likeliest]) -> PackedLikeliest | None:
    if not likeliest:
        return None
    return PackedLikeliest(
        np.array([each.ids.shape[1] for each in likeliest], np.int32),
        _joined([each.ids.ravel() for each in likeliest], np.int32),
        _joined([each.logprobs.ravel() for each in likeliest], np.float32),
        _joined([each.weights for each in likeliest], np.float32),
    )


@dataclass(frozen=True, slots=True)
class PackedReferences:
    """Reference statistics of several groups: of each its version (None: it has none) and whether
    it says what is likely."""

    versions: tuple[str | None, ...]
    are_likely: tuple[bool, ...]
    logprobs: Float32
    likeliest: PackedLikeliest | None

    def unpack(self, groups: Sequence[Sequence[Trajectory]]) -> list[ReferenceStatistics | None]:
        """The statistics of the `groups` that were packed; their arrays are views."""
        asked = [g for g, is_likely in zip(groups, self.are_likely, strict=True) if is_likely]
        counts = (int(t.loss_mask.sum()) for group in asked for t in group)
        likeliest = iter(() if self.likeliest is None else self.likeliest.unpack(counts))
        found: list[ReferenceStatistics | None] = []
        start = 0
        for version, is_likely, group in zip(self.versions, self.are_likely, groups, strict=True):
            if version is None:
                found.append(None)
                continue
            ends = list(accumulate((len(t.token_ids) for t in group), initial=start))
            start = ends[-1]
            own = tuple(self.logprobs[low:high] for low, high in pairwise(ends))
            beside = tuple(islice(likeliest, len(group))) if is_likely else ()
            found.append(ReferenceStatistics(version, own, beside))
        return found


def pack_references(statistics: Sequence[ReferenceStatistics | None]) -> PackedReferences:
    known = [each for each in statistics if each is not None]
    return PackedReferences(
        tuple(None if each is None else each.version for each in statistics),
        tuple(each is not None and bool(each.likeliest) for each in statistics),
        _joined([logprobs for each in known for logprobs in each.logprobs], np.float32),
        _pack_likeliest([one for each in known for one in each.likeliest]),
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Groups that travel together."""

    groups: tuple[ScoredGroup, ...]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the trajectories of all groups as one `PackedTrajectories`, and the scores."""
        trajectories = [t for group in self.groups for t in group.rows]
        scores = pack_scores([score for group in self.groups for score in group.row_scores])
        references = pack_references([group.reference for group in self.groups])
        looked = [
            None if group.companion is None else group.companion.reference_logprobs
            for group in self.groups
        ]
        compared = [logprobs for logprobs in looked if logprobs is not None]
        beside = _joined(compared, np.float32) if compared else None
        rest = tuple(
            (
                group.id,
                group.task,
                len(group.trajectories),
                dict(group.reward_versions),
                dict(group.timings),
                group.cut_off,
                group.companion is not None,
                logprobs is not None,
            )
            for group, logprobs in zip(self.groups, looked, strict=True)
        )
        return _block, (pack(trajectories), scores, references, beside, rest)


_GroupRest: TypeAlias = tuple[
    GroupId,
    Task,
    int,
    dict[str, str],
    dict[str, float],
    tuple[int, ...],
    bool,
    bool,
]


def _block(
    packed: PackedTrajectories,
    packed_scores: PackedScores,
    packed_references: PackedReferences,
    beside: Float32 | None,
    rest: tuple[_GroupRest, ...],
) -> Block:
    trajectories, row_scores = packed.unpack(), packed_scores.unpack()
    counts = [count + has_companion for _, _, count, *_, has_companion, _ in rest]
    ends = list(accumulate(counts, initial=0))
    samples = [
        trajectories[first : first + count]
        for first, (_, _, count, *_) in zip(ends[:-1], rest, strict=True)
    ]
    references = packed_references.unpack(samples)
    groups, at = [], 0
    for (first, end), own, reference, told in zip(
        pairwise(ends), samples, references, rest, strict=True
    ):
        name, task, count, reward_versions, timings, cut_off, has_companion, is_compared = told
        scores = row_scores[first : first + count]
        companion = None
        if has_companion:
            trajectory, looked = trajectories[end - 1], None
            if is_compared:
                assert beside is not None
                looked = beside[at : at + len(trajectory.token_ids)]
                at += len(looked)
            companion = Companion(trajectory, row_scores[end - 1], looked)
        groups.append(
            ScoredGroup(
                name, task, own, scores, reference, reward_versions, timings, cut_off, companion
            )
        )
    return Block(tuple(groups))


def _joined(arrays: Sequence[npt.NDArray[Number]], dtype: type[Number]) -> npt.NDArray[Number]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
