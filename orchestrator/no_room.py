"""A disk that is full, whoever met it: told in one way, with what to do."""

from __future__ import annotations

import os
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from manta.orchestrator.checkpoint import Checkpoints

_TOLD = tuple(os.strerror(number) for number in (ENOSPC, EDQUOT, EFBIG))
"""How it is told by those whose errors come as text, over other processes."""


def with_advice(error: str, root: Path, checkpoints: Checkpoints) -> str:
    """`error`, which ended a run whose directory is `root`; where a disk was full, with what is
    lost (nothing that a checkpoint has), and what to do."""
    if not any(each in error for each in _TOLD) or "start the run again" in error:
        return error
    steps = checkpoints.steps()
    kept = f"the checkpoint of step {steps[-1]}" if steps else "the beginning: no checkpoint yet"
    return (
        f"{error}\na disk is full (the run directory is {root}): make room, then start the run "
        f"again. It goes on from {kept}; ledger, metrics and trajectories up to there are whole"
    )
