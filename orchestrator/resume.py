"""What `--resume` asks for, and the checkpoint that a run goes on from.

Owns the words of the option, and what is said where they do not fit the run directory. What a
checkpoint is, and how one is left behind, is `manta.orchestrator.checkpoint`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manta.envs.records import Json
from manta.orchestrator.checkpoint import Checkpoint, Checkpoints
from manta.orchestrator.config import RunFile
from manta.orchestrator.lives import Lives
from manta.orchestrator.run_changes import Change
from manta.orchestrator.run_directory import RunDirectory

AUTO, NEVER = "auto", "never"


@dataclass(frozen=True, slots=True)
class Asked:
    """`step`: that to go back to; None where the run goes on from its newest checkpoint, or starts.
    `changed`: what its run file changes."""

    step: int | None = None
    changed: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a life of the run begins: at `checkpoint`, or with the initial weights. `passed_over`:
    why newer ones, each of them damaged, were not taken; `left`: steps of those that it went back
    from."""

    checkpoint: Checkpoint | None
    asked: Asked
    passed_over: tuple[str, ...] = ()
    left: tuple[int, ...] = ()

    def tell(self, event: Callable[[str, Mapping[str, Json], str], None]) -> None:
        for change in self.asked.changed:
            told = {"key": change.key, "before": change.before, "after": change.after}
            event("run file changed", told, f"run file changed: {change}")
        for warning in self.passed_over:
            event("damaged checkpoint passed over", {"why": warning}, "")
        if self.left:
            event("checkpoints left behind", {"steps": list(self.left)}, "")


def add_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--resume",
        metavar="auto|never|STEP|PATH",
        default=AUTO,
        help="auto (default): go on with the run in the run directory, or start one; never: only "
        "start one; STEP or PATH: go back to that checkpoint of the run, and on from there",
    )


def asked(text: str, lives: Lives, run_file: RunFile) -> Asked:
    """What `--resume TEXT` means for the run directory of `run_file`.

    Raises ValueError where `text` is none of the words, or what it asks for cannot be; nothing has
    been changed then.
    """
    root = lives.directory.root
    if text == NEVER and lives.holds_a_run():
        raise ValueError(
            f"--resume never: {root} holds a run already, and nothing of it was touched: choose "
            "another run.name, move that folder away, or go on with the run (--resume auto)"
        )
    changed = tuple(lives.check(run_file))
    if text in (AUTO, NEVER):
        return Asked(changed=changed)
    step = int(text) if text.isdecimal() else _step_at(text, lives.directory)
    steps = Checkpoints(lives.directory.checkpoints_at(), keep=1).steps()
    if step not in steps:
        there = f"there are those of steps {_listed(steps)}" if steps else "it has none"
        raise ValueError(f"--resume {text}: {root} has no checkpoint of step {step}; {there}")
    return Asked(step, changed)


def origin(checkpoints: Checkpoints, directory: RunDirectory, asked: Asked) -> Origin:
    """Where the run begins: at its newest whole checkpoint, or at that of the step asked for: those
    after it are none from then on, and a run that was finished is not any more.

    Raises ValueError where that checkpoint, or every one, is damaged or of another format: nothing
    has been changed then.
    """
    if asked.step is None:
        checkpoint, warnings = checkpoints.latest()
        return Origin(checkpoint, asked, tuple(warnings))
    chosen = checkpoints.at_step(asked.step)
    directory.summary.unlink(missing_ok=True)
    return Origin(chosen, asked, left=tuple(checkpoints.leave_after(asked.step)))


def _step_at(text: str, directory: RunDirectory) -> int:
    """The step of the checkpoint at a path, which must be one of the run's own."""
    path, _, name = text.rstrip("/").rpartition("/")
    step = name.removeprefix("step=")
    if not name.startswith("step=") or not step.isdecimal():
        raise ValueError(
            f"--resume: is '{text}', must be auto, never, the number of a step, or the path of a "
            "checkpoint, which ends in step=NUMBER"
        )
    place = directory.checkpoints_at()
    own = place.location if place.local is None else str(place.local.resolve())
    if (path if "://" in path else str(Path(path).resolve())) != own:
        raise ValueError(
            f"--resume: {text} is no checkpoint of {directory.root}, which has its own in {own}. "
            "To begin another run with its weights, write them as a folder (manta export "
            "RUN_DIR@STEP FOLDER) and name that in model.path"
        )
    return int(step)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))
