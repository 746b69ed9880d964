"""Checkpoints: the learner's files and the orchestrator's state, visible atomically.

`checkpoints/step=N/` holds `learner/` (written by rank 0), `state.json` and `manifest.json` with
the SHA-256 of every file. It is written under another name and renamed when whole; the manifest is
the only commit record. A checkpoint that does not verify is passed over with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from manta.envs.records import GroupId
from manta.orchestrator.feed import FeedState

FORMAT = 1

_NAME = re.compile(r"step=(\d+)")


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


@dataclass(frozen=True, slots=True)
class RunState:
    """The driver's side of a checkpoint. `step` counts over all stages, `stage_step` within one.

    `ends_stage`: this is the stage's product, kept for good (references and later stages use it).
    """

    step: int
    stage: str
    stage_step: int
    ends_stage: bool
    feed: FeedState | None
    ledger_position: int
    metrics_position: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    state: RunState

    @property
    def learner(self) -> Path | None:
        """The learner's files; None where no learner took part (a stage that only samples)."""
        folder = self.folder / "learner"
        return folder if any(folder.glob("*")) else None


class Checkpoints:
    def __init__(self, folder: Path, keep: int) -> None:
        """`keep`: how many are kept beside those that end a stage."""
        self._folder, self._keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, step: int) -> Path:
        """A fresh folder for the learner to write into; leftovers of a crash are cleared."""
        partial = self._partial(step)
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "learner").mkdir(parents=True)
        return partial / "learner"

    def commit(self, state: RunState) -> Checkpoint:
        """Makes the checkpoint of `state.step` visible, then removes those beyond `keep`.

        Raises CheckpointFailed where it cannot be written (a full disk); what was written of it is
        removed.
        """
        partial = self._partial(state.step)
        final = self._folder / f"step={state.step:06d}"
        try:
            _seal(partial, state)
            if final.exists():  # damaged, or of a history that the run went back from
                self._set_aside(final)
            partial.rename(final)
            _sync_folder(self._folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointFailed(
                f"the checkpoint of step {state.step} could not be written to {self._folder}: "
                f"{error}. Make room (or lower checkpoint.keep), then start the run again: it goes "
                "on from the checkpoint before"
            ) from error
        self._prune(state.step)
        return Checkpoint(final, state)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and a warning for each damaged one passed over."""
        warnings: list[str] = []
        for _, folder in self._newest_first():
            try:
                return self.read(folder), warnings
            except ValueError as error:
                warnings.append(str(error))
        return None, warnings

    def read(self, folder: Path) -> Checkpoint:
        """Raises ValueError naming what is damaged, or a format that this version cannot read."""
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            found, files = manifest["format"], dict(manifest["files"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"checkpoint {folder} has no readable manifest: {error!r}") from error
        if found != FORMAT:
            raise ValueError(f"checkpoint {folder} has format {found}, this version reads {FORMAT}")
        for name, expected in files.items():
            if _file_hash(folder / name) != expected:
                raise ValueError(f"checkpoint {folder}: {name} is missing or damaged")
        state = _peek(folder) if "state.json" in files else None
        if state is None:
            raise ValueError(f"checkpoint {folder}: state.json is missing or damaged")
        return Checkpoint(folder, state)

    def newest_learner(self, step: int) -> Path | None:
        """The newest learner's files at or before `step`; those of a stage's end stay for good.

        Raises ValueError where a checkpoint that may hold them is damaged.
        """
        for number, folder in self._newest_first():
            if number <= step and (learner := self.read(folder).learner):
                return learner
        return None

    def stage_end(self, stage: str) -> Checkpoint | None:
        """The newest product of `stage`, if it has ended.

        Raises ValueError where it is damaged, or cannot be told because another one is.
        """
        unknown = []
        for _, folder in self._newest_first():
            state = _peek(folder)
            if state is None:
                unknown.append(folder)
            elif state.ends_stage and state.stage == stage:
                return self.read(folder)
        if unknown:
            raise ValueError(
                f"no checkpoint is known to end stage {stage!r}, but {unknown[0]} has no readable "
                "state.json: restore it from a copy, or remove it to go on without"
            )
        return None

    def _partial(self, step: int) -> Path:
        return self._folder / f".step={step:06d}"

    def _newest_first(self) -> list[tuple[int, Path]]:
        """(step, folder) of everything that looks like a checkpoint."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self._folder.iterdir()]
        return sorted([(int(m[1]), path) for m, path in matches if m], reverse=True)

    def _prune(self, step: int) -> None:
        """Keeps what ends a stage, and `keep` others up to `step`. What cannot be read, or comes
        after `step`, was passed over when the run resumed, and is left to whoever looks into it."""
        states = [(f, _peek(f)) for number, f in self._newest_first() if number <= step]
        passing = [folder for folder, state in states if state and not state.ends_stage]
        for folder in passing[self._keep :]:
            self._set_aside(folder)
        for leftover in (*self._folder.glob(".step=*"), *self._folder.glob(".old-step=*")):
            shutil.rmtree(leftover, ignore_errors=True)

    def _set_aside(self, folder: Path) -> None:
        """`folder` is no checkpoint from now on: a crash while it is deleted leaves no half one."""
        aside = self._folder / f".old-{folder.name}"
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def _seal(partial: Path, state: RunState) -> None:
    """Adds state and manifest, and forces everything to disk."""
    (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    manifest = {
        "format": FORMAT,
        "files": {str(p.relative_to(partial)): _hash_and_sync(p) for p in files},
    }
    path = partial / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1))
    _hash_and_sync(path)
    for folder in (*(p for p in partial.rglob("*") if p.is_dir()), partial):
        _sync_folder(folder)


def _peek(folder: Path) -> RunState | None:
    """The state in `folder`, not verified; None where it cannot be read."""
    try:
        return _run_state(json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _run_state(fields: Mapping[str, object]) -> RunState:
    feed = fields["feed"]
    parsed = None
    if isinstance(feed, dict):
        parsed = FeedState(
            feed["epoch"],
            feed["position"],
            tuple(GroupId(*group) for group in feed["outstanding"]),
            feed.get("median_length"),
        )
    return RunState(**{**fields, "feed": parsed})  # type: ignore[arg-type]


def _file_hash(path: Path) -> str | None:
    """None where the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _hash_and_sync(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
