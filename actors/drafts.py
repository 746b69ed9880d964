"""Samples while engines make them: what is kept when an engine is lost, and what is still to make.

Owns the tokens, log-probs and version spans of a call's samples between engines. A token is born
once: what was fetched from an engine is never asked for again, and what was not is lost with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from manta.envs.records import (
    Completion,
    FinishReason,
    Float32,
    GenerateRequest,
    Int32,
    VersionSpan,
)

Extras: TypeAlias = Mapping[str, npt.NDArray[np.generic]]


@dataclass(slots=True)
class _Draft:
    """One sample. The engine that works on it now began behind its first `begin` tokens."""

    request: GenerateRequest
    sample: int
    tokens: list[Int32] = field(default_factory=list)
    logprobs: list[Float32] = field(default_factory=list)
    earlier: tuple[VersionSpan, ...] = ()
    spans: tuple[VersionSpan, ...] = ()
    begin: int = 0
    length: int = 0
    finish_reason: FinishReason | None = None
    extras: Extras = field(default_factory=dict)

    @property
    def is_fresh(self) -> bool:
        """Has it no token yet, and not ended?"""
        return self.length == 0 and self.finish_reason is None

    def rest(self) -> GenerateRequest:
        """What is left of it, as a request of its own."""
        request = self.request
        return replace(
            request,
            prefix=np.concatenate([request.prefix, *self.tokens]),
            seeds=(request.seeds[self.sample],),
            budgets=(request.budgets[self.sample] - self.length,),
            drawn=request.drawn + self.length,
            enough=None,
        )

    def grow(self, completion: Completion, skip: int) -> None:
        """Appends what `completion` has beyond its first `skip` tokens; its spans count from
        `begin`."""
        self.tokens.append(completion.token_ids[skip:])
        self.logprobs.append(completion.logprobs[skip:])
        self.length += len(completion.token_ids) - skip
        self.spans = self.earlier
        for start, version in completion.weight_versions:
            if not self.spans or self.spans[-1].version != version:
                self.spans += (VersionSpan(self.begin + start, version),)

    def finish(self, completion: Completion) -> None:
        """`completion` is all that the engine made since `begin`."""
        self.grow(completion, self.length - self.begin)
        self.finish_reason = completion.finish_reason
        self.extras = completion.extras if self.begin == 0 else {}

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        tokens = np.concatenate([np.zeros(0, np.int32), *self.tokens])
        logprobs = np.concatenate([np.zeros(0, np.float32), *self.logprobs])
        return Completion(tokens, logprobs, self.spans, self.finish_reason, self.extras)

    def reopen(self) -> None:
        """Another engine goes on from here, unless the last token is there already."""
        if self.finish_reason is not None:
            return
        self.begin, self.earlier = self.length, self.spans
        last = next((int(ids[-1]) for ids in reversed(self.tokens) if len(ids)), None)
        if last in self.request.sampling.stop_token_ids:
            self.finish_reason = "stop"
        elif self.length == self.request.budgets[self.sample]:
            self.finish_reason = "length"


class Drafts:
    """The samples of `requests`. Ask `open` what to send, and tell what comes back.

    Of an engine's extras, those of samples that it made from their start are kept. Where an engine
    is lost under a request that wants `enough` of its samples, those that are furthest go on, as
    many as are still wanted; the others are cut: no sample is made anew to be thrown away.
    """

    def __init__(self, requests: Sequence[GenerateRequest]) -> None:
        self._groups = [[_Draft(r, i) for i in range(len(r.seeds))] for r in requests]
        self._sent: list[list[_Draft]] = []

    @property
    def num_made(self) -> int:
        """Tokens that are here, of all samples."""
        return sum(draft.length for group in self._groups for draft in group)

    def open(self) -> list[GenerateRequest]:
        """What another engine has to make; nothing where all is done.

        Samples of one request that have no token yet stay one request: they share its prefix.
        """
        self._sent = []
        requests = []
        for group in self._groups:
            is_whole = all(draft.is_fresh for draft in group)
            for draft in group:
                draft.reopen()
            if not is_whole:
                _cut(group)
            left = [draft for draft in group if draft.finish_reason is None]
            fresh = [draft for draft in left if draft.length == 0]
            if fresh:
                self._sent.append(fresh)
                requests.append(_fresh(fresh, group[0].request.enough if is_whole else None))
            for draft in left:
                if draft.length:
                    self._sent.append([draft])
                    requests.append(draft.rest())
        return requests

    def known(self) -> list[list[int]]:
        """By sample of what `open` gave: how many of the engine's tokens are here."""
        return [[draft.length - draft.begin for draft in sent] for sent in self._sent]

    def grow(self, found: Sequence[Sequence[Completion]]) -> None:
        """Takes what the engine made beyond `known`; empty where it has not begun."""
        for sent, completions in zip(self._sent, found, strict=False):
            for draft, completion in zip(sent, completions, strict=True):
                draft.grow(completion, 0)
                if completion.finish_reason != "abort":
                    draft.finish_reason = completion.finish_reason

    def finish(self, found: Sequence[Sequence[Completion]]) -> None:
        """Takes all that the engine made, what `grow` has seen of it included."""
        for sent, completions in zip(self._sent, found, strict=True):
            for draft, completion in zip(sent, completions, strict=True):
                draft.finish(completion)

    def completions(self) -> list[list[Completion]]:
        """All samples, by request. Everything must be done."""
        return [[draft.completion() for draft in group] for group in self._groups]


def _cut(group: Sequence[_Draft]) -> None:
    """Leaves no more drafts open than the request still wants, those with the most tokens."""
    enough = group[0].request.enough
    if enough is None:
        return
    wanted = enough - sum(draft.finish_reason in ("stop", "length") for draft in group)
    left = [draft for draft in group if draft.finish_reason is None]
    for draft in sorted(left, key=lambda draft: -draft.length)[max(0, wanted) :]:
        draft.finish_reason = "abort"


def _fresh(drafts: Sequence[_Draft], enough: int | None) -> GenerateRequest:
    request = drafts[0].request
    return replace(
        request,
        enough=enough,
        seeds=tuple(request.seeds[draft.sample] for draft in drafts),
        budgets=tuple(request.budgets[draft.sample] for draft in drafts),
    )
