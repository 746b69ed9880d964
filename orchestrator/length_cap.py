"""How many tokens a sample may have: a fixed bound, or a multiple of the usual length.

Owns the bound and what it follows. A quantile beyond the median would be a trap: what the cap cuts
counts as the cap's length, so a cap at a high quantile of the lengths seen can fall and never rise.
The median does not notice what happens to the other half.

What the run has seen of lengths changes the cap between steps only, and is part of a checkpoint: a
group that is made again, or after a resume, is made under the same cap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from manta.actors.engines.settings import CapSettings

NEW_SHARE = 0.25
"""How much the newest step's median counts in the running one."""


class LengthCap:
    """`median` is the running one of a checkpoint; `most` bounds every sample in any case."""

    def __init__(self, settings: CapSettings, most: int, median: float | None = None) -> None:
        self._settings, self._most = settings, most
        self.median = median
        self._seen: list[int] = []

    @property
    def tokens(self) -> int:
        """The cap of samples that begin now; without anything seen, that is `most`."""
        cap = self._settings.tokens
        if self._settings.medians is not None and self.median is not None:
            cap = math.ceil(self._settings.medians * self.median)
        return self._most if cap is None else max(1, min(cap, self._most))

    def note(self, lengths: Sequence[int]) -> None:
        """Samples of the step under way have these lengths, in tokens."""
        self._seen += lengths

    def turn(self) -> None:
        """The step is over: what was noted since the last one counts from now on."""
        if not self._seen:
            return
        newest = float(np.median(self._seen))
        self._seen = []
        before = newest if self.median is None else self.median
        self.median = (1 - NEW_SHARE) * before + NEW_SHARE * newest
