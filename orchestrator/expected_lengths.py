"""How long a task's samples are expected to be: what decides who starts first.

With more samples than rows, a step lasts at least as long as the sample that starts last; starting
the longest first (Graham 1969, longest processing time) leaves the short ones for the gaps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from manta.actors.lanes import Admission


class ExpectedLengths:
    """Mean tokens of each task's samples so far, by index; a new task is like the mean of all."""

    def __init__(self) -> None:
        self._tokens: dict[int, float] = defaultdict(float)
        self._samples: dict[int, int] = defaultdict(int)
        self._all_tokens = 0.0
        self._all_samples = 0

    def note(self, index: int, lengths: Sequence[int]) -> None:
        """The samples of task `index` had `lengths`."""
        total, count = float(sum(lengths)), len(lengths)
        self._tokens[index] += total
        self._samples[index] += count
        self._all_tokens += total
        self._all_samples += count

    def of(self, index: int) -> float:
        if index in self._samples:
            return self._tokens[index] / self._samples[index]
        return self._all_tokens / self._all_samples if self._all_samples else 0.0

    def longest_first(self, admissions: Sequence[Admission]) -> list[Admission]:
        """`admissions`, which were made together, ranked by falling expected length from the rank
        of the first on; equals stay in order."""
        if not admissions:
            return []
        first = min(admission.rank for admission in admissions)
        by_length = sorted(admissions, key=lambda admission: -self.of(admission.index))
        return [replace(each, order=(*first[:2], i)) for i, each in enumerate(by_length)]
