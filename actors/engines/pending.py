"""A request on its way through an engine: what is still to start, what is done, who waits."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manta.actors.engines.causal_forward import Prefilled
from manta.actors.engines.row_table import NewRow
from manta.envs.records import Completion, GenerateRequest, VersionSpan


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix that was run: row `index` of `prefilled`, and the logits float[V] after its end."""

    prefilled: Prefilled
    index: int
    logits: Tensor


class Pending:
    """One request; its samples start in order and end in any. `future` gets all completions."""

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self.tokens = torch.from_numpy(request.prefix.astype("int64"))
        self.prefix: Prefix | None = None
        self.num_started = 0
        self.future: Future[list[Completion]] = Future()
        # From here on nobody can cancel the future, so setting its result cannot fail.
        self.future.set_running_or_notify_cancel()
        self._completions: dict[int, Completion] = {}
        self._cut: Mapping[int, Completion] = {}
        self._is_closed = False

    @property
    def num_waiting(self) -> int:
        """Samples that have not started."""
        return len(self.request.seeds) - self.num_started

    @property
    def num_ended(self) -> int:
        """Samples that have ended or were cut; may be asked from any thread."""
        return len(self.request.seeds) if self._is_closed else len(self._completions)

    @property
    def is_done(self) -> bool:
        """Have as many samples ended as the request wants?"""
        enough = self.request.enough or len(self.request.seeds)
        return len(self._completions) >= enough

    def start(self, count: int) -> list[tuple[NewRow, LiveSample]]:
        """The next `count` samples, as rows."""
        request, begin = self.request, self.num_started
        self.num_started += count
        return [
            (
                NewRow(
                    self.tokens,
                    request.seeds[i],
                    request.budgets[i],
                    request.sampling,
                    request.drawn,
                ),
                LiveSample(self, i, []),
            )
            for i in range(begin, begin + count)
        ]

    def finish(self, sample: int, completion: Completion) -> None:
        """Takes a sample's completion."""
        self._completions[sample] = completion

    def close(self, live: Mapping[int, Completion]) -> None:
        """Resolves the future, once the request is done; samples that are `live`, or have not
        started, are cut."""
        self._is_closed = True
        self._cut = live
        self.num_started = len(self.request.seeds)
        self.future.set_result(self.so_far({}))

    def so_far(self, live: Mapping[int, Completion]) -> list[Completion]:
        """Every sample as it stands: what is done, what is `live`, and nothing of the others."""
        nothing = Completion(np.zeros(0, np.int32), np.zeros(0, np.float32), (), "abort")
        known = {**live, **self._cut, **self._completions}
        return [known.get(i, nothing) for i in range(len(self.request.seeds))]


@dataclass(slots=True)
class LiveSample:
    """Which sample a live row is, and the weight versions that it was sampled under."""

    pending: Pending
    sample: int
    spans: list[VersionSpan]

    def note_version(self, span: VersionSpan) -> None:
        """From `span.start` on, tokens are of `span.version`; a span without tokens goes."""
        if self.spans and self.spans[-1].start == span.start:
            del self.spans[-1]
        if not self.spans or self.spans[-1].version != span.version:
            self.spans.append(span)
