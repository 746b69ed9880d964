"""The lives of a run: whether its directory fits the run file, and the count of starts.

`incarnations.jsonl` has a line for every start of the driver, and for every learner group that took
the place of another: its number and the step it went on from. With it a
reader tells which of the steps that ranks wrote down belong to the history that led to the final
weights: a step of an incarnation counts unless a later one started from before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from manta.actors.line_file import LineFile
from manta.orchestrator.config import RunFile
from manta.orchestrator.run_changes import Change, changes
from manta.orchestrator.run_directory import RunDirectory, atomic_write
from manta.orchestrator.run_file import dump, load


class Lives:
    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.incarnation = 0

    def holds_a_run(self) -> bool:
        directory = self.directory
        return directory.config.exists() or any(directory.checkpoints.glob("step=*"))

    def check(self, run_file: RunFile) -> list[Change]:
        """What `run_file` changes of the run in the directory, if there is one.

        Raises ValueError, with all changes, where one of them keeps it from going on.
        """
        if not self.directory.config.exists():
            return []
        found = changes(load(self.directory.config, []), run_file)
        refused = [change for change in found if change.problem]
        if refused:
            allowed = [change for change in found if not change.problem]
            beside = f"beside these, which may change:{_lines(allowed)}\n" if allowed else ""
            raise ValueError(
                f"{self.directory.root} holds a run of another configuration "
                f"(there -> here):{_lines(refused)}\n{beside}"
                "Set what may not change back to go on with that run (KEY=VALUE does, on the "
                "command line), or choose another run.name to begin a new one; docs/run-file.md "
                "lists the keys that may change"
            )
        return found

    def is_finished(self, run_file: RunFile) -> bool:
        """Whether the run came to its end, with the steps that the run file asks for.

        Raises ValueError where its summary cannot be read.
        """
        path = self.directory.summary
        if not path.exists() or not self.directory.config.exists():
            return False
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            if summary["state"] != "finished":
                return False
            done = {stage["name"]: stage["steps"] for stage in summary["stages"]}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is no summary of a run ({error!r}): remove it to go on with the run"
            ) from error
        return all(
            stage.kind == "evaluate" or done.get(stage.name, 0) >= stage.steps
            for stage in run_file.stages
        )

    def save(self, run_file: RunFile) -> None:
        atomic_write(self.directory.config, dump(run_file))

    def begin(self, step: int) -> int:
        """Notes a start from `step`; its number, counted from 0, is `incarnation` from now on."""
        path = self.directory.incarnations
        with LineFile(path) as file:
            number = len(_starts(path))
            file.append(json.dumps({"incarnation": number, "step": step}))
            file.position()
        self.incarnation = number
        return number


def lineage(path: Path) -> dict[int, int]:
    """{incarnation: its last step that counts}, from the lines of `incarnations.jsonl`: a later one
    cuts off what came after the step it started from. One that is not cut off is absent."""
    last: dict[int, int] = {}
    for start in _starts(path):
        for earlier in range(start["incarnation"]):
            last[earlier] = min(last.get(earlier, start["step"]), start["step"])
    return last


def _lines(found: Sequence[Change]) -> str:
    return "".join(f"\n  {change}" for change in found)


def _starts(path: Path) -> list[dict[str, int]]:
    """The whole lines of `path`; one that a crash cut short is none."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
