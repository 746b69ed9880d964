"""Checkpoints: the learner's files and the orchestrator's state, visible atomically.

`step=N/` holds `learner/` (written by the ranks), `state.json` and `manifest.json`, which names
every file with its size and SHA-256, is written last, and is the only commit record. On a local
file system all of it is written under another name and renamed when whole; elsewhere a folder
without a manifest is none. A checkpoint that does not verify is passed over with a warning; one
of another format, or on storage that does not answer, is not: going on from an older one would
lose it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from manta.actors.stored_folder import StoredFolder, WrittenFile
from manta.orchestrator.kept_checkpoints import kept
from manta.orchestrator.manifest import (
    MANIFEST,
    Unusable,
    damage,
    read_manifest,
    write_manifest,
)
from manta.orchestrator.run_state import RunState, run_state

_STATE, _LEARNER = "state.json", "learner"
_LEFT = "left.json"
"""Marks one that the run went back from: no checkpoint, whatever else is in its folder."""

_NAME = re.compile(r"step=(\d+)")


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


class NotRemoved(OSError):
    """The new checkpoint is there; older ones could not be removed. The next commit tries again."""


class Unreachable(Unusable):
    """Its storage does not answer."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`files` are those that the manifest names."""

    folder: StoredFolder
    state: RunState
    files: tuple[str, ...]

    @property
    def learner(self) -> StoredFolder | None:
        """The learner's files; None where no learner took part (a stage that only samples)."""
        has_files = any(name.startswith(f"{_LEARNER}/") for name in self.files)
        return self.folder.under(_LEARNER) if has_files else None


class Checkpoints:
    def __init__(
        self,
        folder: StoredFolder,
        keep: int,
        keep_best: int = 0,
        named: frozenset[int] = frozenset(),
    ) -> None:
        """`keep`: how many are kept beside those that end a stage and those of the steps `named`;
        `keep_best`: how many beside these, those of the highest score."""
        self._folder, self._keep, self._keep_best = folder, keep, keep_best
        self._named = named
        # Commits and restarts of the learner run on threads: what one reads the other may remove
        self._lock = threading.Lock()
        self._is_held = False

    def begin(self, step: int) -> str:
        """Where ranks bring the learner's files, an empty folder; leftovers of a crash are cleared.

        Raises CheckpointFailed where there can be none.
        """
        partial = self._partial(step)
        try:
            if self._folder.local is None:
                self._set_aside(partial)  # damaged, or of a history that the run went back from
            partial.remove()
            learner = partial.under(_LEARNER)
            learner.create()
        except OSError as error:
            raise self._failed(step, error) from error
        return learner.location

    def commit(self, state: RunState, written: Sequence[WrittenFile]) -> Checkpoint:
        """Makes the checkpoint of `state.step` visible, if all that ranks have `written` is there,
        then removes those that are not kept.

        Raises CheckpointFailed where it cannot be written (a full disk); what was written of it is
        removed. Raises NotRemoved where it is there.
        """
        partial = self._partial(state.step)
        with self._lock:
            try:
                files = _seal(partial, state, written)
                final = self._visible(state.step, partial)
            except OSError as error:
                self.abandon(state.step)
                raise self._failed(state.step, error) from error
            try:
                if not self._is_held:
                    self._prune(state.step)
            except (OSError, Unreachable) as error:
                raise NotRemoved(
                    f"checkpoints in {self._folder} are still there: {error}"
                ) from error
        return Checkpoint(final, state, files)

    def hold(self) -> None:
        """From now on nothing that is there goes: somebody is about to read it."""
        with self._lock:
            self._is_held = True

    def release(self) -> None:
        """It has been read; what is not kept goes with the next commit."""
        with self._lock:
            self._is_held = False

    def fail(self, step: int, problems: Sequence[str]) -> NoReturn:
        """Raises CheckpointFailed, for ranks could not write; what they did write is removed."""
        self.abandon(step)
        raise self._failed(step, "; ".join(dict.fromkeys(problems)))

    def abandon(self, step: int) -> None:
        """Removes what has been written of a checkpoint that is not committed."""
        try:
            self._partial(step).remove()
        except OSError:
            return  # it is none without its manifest; the next commit clears it

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and a warning for each damaged one passed over.

        Raises ValueError where there are some, and none is whole: to begin from the start would
        throw away what they cost. Raises Unusable where it is not known what the newest is.
        """
        warnings: list[str] = []
        with self._lock:
            for _, folder in self._newest_first():
                try:
                    return self.read(folder), warnings
                except Unusable:
                    raise
                except ValueError as error:
                    warnings.append(str(error))
        if warnings:
            told = "\n  ".join(warnings)
            raise ValueError(
                f"none of the checkpoints in {self._folder} is whole:\n  {told}\nPut back one of "
                "them from a copy, or move these folders away to begin the run from its start"
            )
        return None, []

    def steps(self) -> list[int]:
        """Those of everything that looks like a checkpoint, ascending."""
        return [step for step, _ in reversed(self._newest_first())]

    def at_step(self, step: int) -> Checkpoint:
        """Raises ValueError where there is none, or it is damaged."""
        return self.read(self._folder.under(f"step={step:06d}"))

    def leave_after(self, step: int) -> list[int]:
        """Those after `step` are no checkpoints any more; which they are, newest first, so that a
        crash on the way leaves a run that can go on. Their files stay until the run comes to their
        steps again."""
        with self._lock:
            left = [(number, each) for number, each in self._newest_first() if number > step]
            for _, folder in left:
                folder.write(_LEFT, json.dumps({"went back to": step}))
        return [number for number, _ in left]

    def read(self, folder: StoredFolder) -> Checkpoint:
        """Raises ValueError naming what is damaged, Unusable where that is not known."""
        try:
            files = read_manifest(folder)
            for name, expected in files.items():
                if problem := damage(folder, expected):
                    raise ValueError(f"checkpoint {folder}: {name} {problem}")
        except OSError as error:
            raise _unreachable(folder, error) from error
        state = _peek(folder) if _STATE in files else None
        if state is None:
            raise ValueError(f"checkpoint {folder}: {_STATE} is missing or damaged")
        return Checkpoint(folder, state, tuple(files))

    def newest_learner(self, step: int) -> StoredFolder | None:
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

    def _failed(self, step: int, why: OSError | str) -> CheckpointFailed:
        return CheckpointFailed(
            f"the checkpoint of step {step} could not be written to {self._folder}: {why}. Make "
            "room (or lower checkpoint.keep), then start the run again: it goes on from the "
            "checkpoint before"
        )

    def _partial(self, step: int) -> StoredFolder:
        """Where the checkpoint of `step` is written: object storage cannot rename a folder."""
        hidden = "." if self._folder.local is not None else ""
        return self._folder.under(f"{hidden}step={step:06d}")

    def _visible(self, step: int, partial: StoredFolder) -> StoredFolder:
        """Makes what is whole in `partial` a checkpoint."""
        final = self._folder.under(f"step={step:06d}")
        if self._folder.local is not None:
            self._set_aside(final)  # damaged, or of a history that the run went back from
            partial.rename(final)
        return final

    def _newest_first(self) -> list[tuple[int, StoredFolder]]:
        """(step, folder) of everything that looks like a checkpoint. Raises Unreachable."""
        try:
            matches = [_NAME.fullmatch(name) for name in self._folder.folders()]
            found = [(int(m[1]), self._folder.under(m[0])) for m in matches if m]
            there = [(number, each) for number, each in found if not self._is_none(each)]
        except OSError as error:
            raise _unreachable(self._folder, error) from error
        return sorted(there, key=lambda item: item[0], reverse=True)

    def _is_none(self, folder: StoredFolder) -> bool:
        """Is it one that the run went back from, or is not finished? Where folders cannot be
        renamed, an unfinished checkpoint has the name of a whole one."""
        is_unfinished = folder.local is None and folder.size(MANIFEST) is None
        return is_unfinished or folder.size(_LEFT) is not None

    def _prune(self, step: int) -> None:
        """What cannot be read, or comes after `step`, was passed over when the run resumed, and is
        left to whoever looks into it."""
        folders = {number: each for number, each in self._newest_first() if number <= step}
        states = {n: state for n, folder in folders.items() if (state := _peek(folder))}
        for number in states.keys() - kept(
            states.values(), self._keep, self._keep_best, self._named
        ):
            self._set_aside(folders[number])
        for name in self._folder.folders():
            match, folder = _NAME.fullmatch(name), self._folder.under(name)
            if match and int(match[1]) <= step and self._is_none(folder):
                self._set_aside(folder)
        for name in self._folder.folders():
            if name.startswith((".step=", ".old-step=")):
                self._folder.under(name).remove()

    def _set_aside(self, folder: StoredFolder) -> None:
        """`folder` is no checkpoint from now on: a crash while it is deleted leaves no half one."""
        if folder.local is None:
            folder.remove_file(MANIFEST)
            folder.remove()
        elif folder.local.exists():
            aside = self._folder.under(f".old-{folder.local.name}")
            aside.remove()
            folder.rename(aside)


def _seal(
    partial: StoredFolder, state: RunState, written: Sequence[WrittenFile]
) -> tuple[str, ...]:
    """Adds state and manifest; the names of all files.

    Raises OSError where a file is not there in its size. Its hash is its rank's, who read it back:
    here all ranks' files would go through one process.
    """
    learner = partial.under(_LEARNER)
    for file in written:
        found = learner.size(file.name)
        if found != file.num_bytes:
            raise OSError(
                f"{learner}/{file.name} does not hold the {file.num_bytes} bytes that its rank "
                f"wrote: {'it is not there' if found is None else f'it has {found}'}"
            )
    learner.remove_unfinished()
    stated = partial.write(_STATE, json.dumps(asdict(state), indent=1))
    entries = {f"{_LEARNER}/{file.name}": file for file in written} | {_STATE: stated}
    write_manifest(partial, entries)
    return tuple(sorted(entries))


def _unreachable(folder: StoredFolder, error: OSError) -> Unreachable:
    return Unreachable(
        f"{folder} cannot be looked at: {error}. Start the run again once it answers; nothing was "
        "changed"
    )


def _peek(folder: StoredFolder) -> RunState | None:
    """The state in `folder`, not verified; None where it cannot be read."""
    try:
        fields: Mapping[str, object] = json.loads(folder.read(_STATE))
        return run_state(fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
