"""`manta check --deep`: the run itself, cut down to a few steps, in a directory that is removed.

Owns what is cut, and what is read from the short run: how long a step takes and how much memory
each role has needed. Everything between is `manta.orchestrator.run`'s: the same workers, models,
stages and proofs.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TypeVar

from manta.actors.stored_folder import StoredFolder
from manta.orchestrator import status
from manta.orchestrator.companion_check import companion_writer
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.health import WorkerReport
from manta.orchestrator.lives import Lives
from manta.orchestrator.metrics import MetricsLine, read_metrics
from manta.orchestrator.reference_config import ReferenceConfig, StageReferenceConfig
from manta.orchestrator.run_directory import RunDirectory

NAME = "check"
WARM_STEPS = 1
"""Steps of a training stage before the one that is measured: engines and learner warm up in it."""
_EVALUATED = 4
"""Held-out tasks at most: enough to see that an evaluation works."""
_NEVER = 1_000_000_000
_STEP_NAME = re.compile(r"\bstep:\d+\b")

R = TypeVar("R", ReferenceConfig, StageReferenceConfig)


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Of a stage: steps that the run file asks for, seconds of a measured step, and by phase; None
    for a stage without steps."""

    stage: str
    steps: int
    seconds: float | None
    phases: dict[str, float]


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """Of a role's largest worker, bytes at most: of its processes, and of its GPU."""

    role: str
    workers: int
    peak: int
    device_peak: int


@dataclass(frozen=True, slots=True)
class Findings:
    """`error` is what the short run ended with; "" where all went well."""

    error: str
    start_seconds: float
    stages: tuple[StageTimes, ...]
    roles: tuple[RoleMemory, ...]


def deep_check(run_file: RunFile) -> Findings:
    """Runs a few steps of every stage on the cluster that `train` would use, and leaves nothing
    behind. Raises nothing for a run that cannot work: that is a finding."""
    from manta.orchestrator.build import transport_settings
    from manta.orchestrator.resume import Asked
    from manta.orchestrator.run import train

    with _folder(Path(run_file.run.dir).absolute()) as folder:
        planned = short(run_file, str(folder))
        directory = RunDirectory.of(planned)
        error = ""
        try:
            with redirect_stdout(_StepLines()):
                train(planned, Lives(directory), Asked())
        except ValueError as failure:  # the cluster is too small, a product cannot be used
            error = str(failure)
        finally:
            sent = transport_settings(planned, directory.root).folder
            if sent is not None:
                with suppress(OSError):
                    StoredFolder.at(sent).remove()
        return _findings(run_file, directory, error)


def short(run_file: RunFile, folder: str) -> RunFile:
    """`run_file` with as few steps as can be measured, in `folder`. Stages that write what stands
    beside the samples of others keep theirs: every task needs a row."""
    writers = [companion_writer(run_file, stage) for stage in run_file.stages]
    return replace(
        run_file,
        run=replace(run_file.run, dir=folder, name=NAME, max_hours=None, max_restarts=0),
        stages=tuple(
            replace(_short_stage(stage), steps=stage.steps)
            if stage in writers
            else _short_stage(stage)
            for stage in run_file.stages
        ),
        reference=_reference(run_file.reference),
        checkpoint=replace(run_file.checkpoint, every_steps=_NEVER, keep=1, keep_best=0, path=None),
        track=replace(run_file.track, wandb=None),
    )


def _short_stage(stage: StageConfig) -> StageConfig:
    steps = {"train": WARM_STEPS + 1, "generate": 1}.get(stage.kind, stage.steps)
    algorithm = stage.algorithm
    if algorithm is not None and algorithm.critic is not None:
        algorithm = replace(algorithm, critic=replace(algorithm.critic, warmup_steps=0))
    evaluate = stage.evaluate
    if evaluate is not None:
        evaluate = replace(evaluate, prompts=min(_EVALUATED, evaluate.prompts), every_steps=_NEVER)
    reference = stage.reference
    if reference is not None:
        reference = _reference(reference)
    return replace(
        stage,
        steps=min(steps, stage.steps),
        algorithm=algorithm,
        evaluate=evaluate,
        reference=reference,
        start_from=_named(stage.start_from),
        model=_named(stage.model),
        models=tuple(_STEP_NAME.sub("initial", model) for model in stage.models),
    )


def _reference(told: R) -> R:
    contrast = told.contrast
    if contrast is not None:
        toward, away = (
            _STEP_NAME.sub("initial", name) for name in (contrast.toward, contrast.away)
        )
        contrast = replace(contrast, toward=toward, away=away)
    combine: dict[str, float] = {}
    for name, coefficient in told.combine.items():
        own = _STEP_NAME.sub("initial", name)
        combine[own] = combine.get(own, 0.0) + coefficient
    return replace(told, model=_named(told.model), combine=combine, contrast=contrast)


def _named(name: str | None) -> str | None:
    """Steps that the short run does not come to are the weights that it began with: of the same
    size."""
    return None if name is None else _STEP_NAME.sub("initial", name)


@contextmanager
def _folder(root: Path) -> Iterator[Path]:
    """Where the run would keep its own: the disk, and on a cluster the share, are the real ones."""
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".check-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                root.rmdir()


class _StepLines(StringIO):
    """Of what a run prints, lets its log lines through, and no closing table of a run that goes
    away."""

    def __init__(self) -> None:
        super().__init__()
        self._out = sys.stdout
        self._rest = ""

    def write(self, text: str) -> int:
        lines = (self._rest + text).split("\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith("["):
                self._out.write(f"{line}\n")
        self._out.flush()
        return len(text)


def _findings(run_file: RunFile, directory: RunDirectory, error: str) -> Findings:
    lines = read_metrics(directory.metrics) if directory.metrics.exists() else []
    steps = [line for line in lines if "time/step" in line.values]
    start_seconds = steps[0].seconds - steps[0].values["time/step"] if steps else 0.0
    stages = tuple(_times(stage, steps) for stage in run_file.stages)
    if not directory.status.exists():
        return Findings(error, start_seconds, stages, ())
    found = status.read(directory.status)
    if not error and found.state != "finished":
        error = found.error or f"the short run ended {found.state}"
    return Findings(error, start_seconds, stages, _roles([*found.workers, *found.departed]))


def _times(stage: StageConfig, steps: Sequence[MetricsLine]) -> StageTimes:
    own = [line.values for line in steps if line.stage == stage.name]
    if not own:
        return StageTimes(stage.name, stage.steps, None, {})
    last = own[-1]
    phases = {
        name.removeprefix("time/"): seconds
        for name, seconds in last.items()
        if name.startswith("time/") and name.count("/") == 1
    }
    seconds = phases.pop("step")
    phases.pop("driver_cpu", None)
    return StageTimes(stage.name, stage.steps, seconds, phases)


def _roles(workers: Sequence[WorkerReport]) -> tuple[RoleMemory, ...]:
    found = []
    for role in dict.fromkeys(each.role for each in workers):
        own = [each for each in workers if each.role == role]
        found.append(
            RoleMemory(
                role,
                len({each.name for each in own}),
                max(each.peak_memory for each in own),
                max(each.device_peak for each in own),
            )
        )
    return tuple(found)
