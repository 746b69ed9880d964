"""What was done to the runs of a soak, and how many of them kept every promise.

A schedule none of whose faults was delivered proves nothing, and is counted by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.chaos.faults import Hit


class Tally:
    def __init__(self) -> None:
        self.failed = 0
        self._held = self._undisturbed = 0
        self._planned: Counter[tuple[str, str]] = Counter()
        self._delivered: Counter[tuple[str, str]] = Counter()

    def note(self, hits: Sequence[Hit], problem: str) -> None:
        """One schedule, with every fault that was planned; `problem` is empty where it held."""
        self._planned.update((hit.fault.kind, hit.fault.role) for hit in hits)
        delivered = [(hit.fault.kind, hit.fault.role) for hit in hits if hit.is_delivered]
        self._delivered.update(delivered)
        self.failed += bool(problem)
        self._held += not problem and bool(delivered)
        self._undisturbed += not problem and not delivered

    def lines(self) -> list[str]:
        total = self._held + self._undisturbed + self.failed
        return [
            f"{self._delivered.total()} of {self._planned.total()} faults were delivered:",
            *(
                f"  {kind} {role}: {self._delivered[kind, role]} of {planned}"
                for (kind, role), planned in sorted(self._planned.items())
            ),
            f"{self._held} of {total} schedules held; {self._undisturbed} more had no fault "
            f"delivered, and prove nothing; {self.failed} failed",
        ]
