"""What a run file says of checkpoints, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from manta.orchestrator import survey
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.metrics import ACCURACY


def checkpoint_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    checkpoint = run_file.checkpoint
    at_least = {
        "every_steps": (checkpoint.every_steps, 1),
        "keep": (checkpoint.keep, 1),
        "keep_best": (checkpoint.keep_best, 0),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            yield f"checkpoint.{key}: is {value}, must be at least {least}"
    if checkpoint.path is not None:
        yield from survey.unreachable("checkpoint.path", checkpoint.path)
    if checkpoint.keep_best > 0 and checkpoint.every_steps > 0:
        yield from _best(run_file)


def _best(run_file: RunFile) -> Iterator[str]:
    """Is there ever a checkpoint whose step is evaluated?"""
    checkpoint = run_file.checkpoint
    trained = [stage for stage in run_file.stages if stage.kind == "train"]
    if not checkpoint.best_by.startswith("eval/"):
        return
    if all(stage.evaluate is None for stage in trained):
        yield (
            f"checkpoint.keep_best: the best are told by {checkpoint.best_by}, and no stage that "
            "trains has an evaluate block: add one, or name a metric of every step in "
            "checkpoint.best_by, such as reward/mean"
        )
    elif not any(_is_ever_both(stage, checkpoint.every_steps) for stage in trained):
        yield (
            f"checkpoint.keep_best: no stage has a checkpoint (every {checkpoint.every_steps} "
            "steps) at a step that is evaluated, but for its last, which is kept anyway: let "
            "checkpoint.every_steps be a multiple of evaluate.every_steps"
        )
    if checkpoint.best_by == "eval/gold_logprob" and not any(
        stage.evaluate is not None and stage.evaluate.gold_likelihood for stage in trained
    ):
        yield (
            "checkpoint.best_by: is eval/gold_logprob, which is measured with "
            f"evaluate.gold_likelihood: set that, or choose {ACCURACY}"
        )


def _is_ever_both(stage: StageConfig, every: int) -> bool:
    if stage.evaluate is None or stage.evaluate.every_steps < 1:
        return False
    return math.lcm(every, stage.evaluate.every_steps) < stage.steps
