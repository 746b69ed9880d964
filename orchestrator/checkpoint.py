"""Checkpoints: the learner's files and the orchestrator's state, visible atomically.

`checkpoints/step=N/` holds `learner/` (written by rank 0), `state.json` and `manifest.json` with
the SHA-256 of every file. It is written under another name and renamed when whole; the manifest is
the only commit record. A checkpoint that does not verify is passed over with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from manta.envs.records import GroupId
from manta.orchestrator.feed import FeedState

FORMAT = 1


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
        self._folder, self._keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, step: int) -> Path:
        """A fresh folder for the learner to write into; leftovers of a crash are cleared."""
        partial = self._folder / f".step={step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "learner").mkdir(parents=True)
        return partial / "learner"

    def commit(self, state: RunState) -> Checkpoint:
        """Makes the checkpoint of `state.step` visible, then removes those beyond `keep`."""
        partial = self._folder / f".step={state.step:06d}"
        final = self._folder / f"step={state.step:06d}"
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        manifest = {
            "format": FORMAT,
            "files": {str(p.relative_to(partial)): _hash_and_sync(p) for p in files},
        }
        path = partial / "manifest.json"
        path.write_text(json.dumps(manifest, indent=1))
        _hash_and_sync(path)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _sync_folder(self._folder)
        self._prune()
        return Checkpoint(final, state)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and a warning for each damaged one passed over."""
        warnings: list[str] = []
        for folder in sorted(self._folder.glob("step=*"), reverse=True):
            try:
                return self.read(folder), warnings
            except ValueError as error:
                warnings.append(str(error))
        return None, warnings

    def read(self, folder: Path) -> Checkpoint:
        """Raises ValueError naming what is damaged, or a format that this version cannot read."""
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint {folder} has no readable manifest: {error}") from error
        if manifest["format"] != FORMAT:
            raise ValueError(
                f"checkpoint {folder} has format {manifest['format']}, this version reads {FORMAT}"
            )
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.exists() or _file_hash(path) != expected:
                raise ValueError(f"checkpoint {folder}: {name} is missing or damaged")
        fields = json.loads((folder / "state.json").read_text())
        return Checkpoint(folder, _run_state(fields))

    def newest_learner(self) -> Path | None:
        """The newest learner's files; those of a stage's end stay for good."""
        for folder in sorted(self._folder.glob("step=*"), reverse=True):
            if learner := self.read(folder).learner:
                return learner
        return None

    def stage_end(self, stage: str) -> Checkpoint | None:
        """The product of `stage`, if it has ended."""
        for folder in sorted(self._folder.glob("step=*")):
            checkpoint = self.read(folder)
            if checkpoint.state.ends_stage and checkpoint.state.stage == stage:
                return checkpoint
        return None

    def _prune(self) -> None:
        folders = sorted(self._folder.glob("step=*"), reverse=True)
        passing = [
            f for f in folders if not json.loads((f / "state.json").read_text())["ends_stage"]
        ]
        for folder in passing[self._keep :]:
            shutil.rmtree(folder)


def _run_state(fields: dict[str, object]) -> RunState:
    feed = fields["feed"]
    parsed = None
    if isinstance(feed, dict):
        parsed = FeedState(
            feed["epoch"], feed["position"], tuple(GroupId(*g) for g in feed["outstanding"])
        )
    return RunState(**{**fields, "feed": parsed})  # type: ignore[arg-type]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
