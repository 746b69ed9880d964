"""How far a run is: the counters that the loop advances and a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """`step` counts over all stages, `stage_step` within `stage`."""

    stage: str
    step: int = 0
    stage_step: int = 0

    def advance(self) -> None:
        self.step += 1
        self.stage_step += 1

    def enter(self, stage: str) -> None:
        self.stage, self.stage_step = stage, 0
