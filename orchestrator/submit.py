"""`manta submit`: a run file, and the folder it lies in, to a running cluster.

Owns what travels with a job: the working directory, the names of environment variables, metadata.
The cluster has Manta itself, from its image or its set-up commands; a working directory that holds
Manta's sources brings its own, which come first. What a job is asked afterwards is
`manta.orchestrator.runs`'.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import manta
from manta.actors.job_variables import HOOK, NAME
from manta.orchestrator.config import RunFile
from manta.orchestrator.job_address import add_argument, address_of, prepare_token
from manta.orchestrator.resume import AUTO

EXCLUDED = (".git", ".venv", "runs", "wandb", "__pycache__", ".mypy_cache", ".pytest_cache")
"""What of a working directory stays here, beside what its .gitignore names."""
DRIVERS = ("WANDB_API_KEY",)
"""Variables that travel without being named, if they are set, to the driver alone."""
RUN_NAME, RUN_DIR, STAGES, VARIABLES = "manta.run", "manta.dir", "manta.stages", "manta.variables"
"""What the metadata of a job calls the run, its directory, its stages and steps, and the names of
the variables that it was given."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_argument(command)
    command.add_argument(
        "--working-dir",
        metavar="FOLDER",
        default=".",
        help="what the run needs beside Manta: its run file, data, plug-ins (default: this folder)",
    )
    command.add_argument(
        "--env",
        metavar="NAME",
        action="append",
        default=[],
        help="an environment variable whose value the job shall have, beside run.variables; again "
        "for more",
    )
    command.add_argument(
        "--wait", action="store_true", help="show what the run prints until it ends"
    )
    command.add_argument(
        "--check-there",
        action="store_true",
        help="only read the run file here, for data or models that are only on the cluster; the "
        "run checks the rest before it starts",
    )


def submit(chosen: argparse.Namespace, loaded: RunFile) -> int:
    """Sends the checked run; the exit code: 0, or 1 with --wait where the run failed.

    Raises ValueError, before anything is sent, where something does not fit.
    """
    folder = _folder(chosen.working_dir)
    run_file = _inside(chosen.run_file, folder)
    _check_places(loaded, chosen.resume)
    variables = _variables(chosen.env, loaded.run.variables, os.environ)
    drivers = {name: os.environ[name] for name in DRIVERS if os.environ.get(name)}
    given = sorted({*variables, *drivers})
    address = address_of(chosen.address)
    prepare_token()
    from manta.orchestrator.job_server import JobServer

    server = JobServer(address)
    id = f"{loaded.run.name}-{secrets.token_hex(3)}"
    environment = {
        # Ray's own stop then waits as long for the driver as the driver does for its workers
        "RAY_JOB_STOP_WAIT_TIME_S": str(round(loaded.run.deadline_seconds)),
    }
    runtime_env: dict[str, object] = {
        "working_dir": str(folder),
        "excludes": _excludes(folder, loaded),
        "env_vars": environment,
    }
    if given:
        environment[NAME] = server.keep(variables, drivers)
        runtime_env["worker_process_setup_hook"] = HOOK
    metadata = {
        "manta": manta.__version__,
        RUN_NAME: loaded.run.name,
        RUN_DIR: str(Path(loaded.run.dir) / loaded.run.name),
        STAGES: " ".join(f"{stage.name}:{stage.steps}" for stage in loaded.stages),
        VARIABLES: " ".join(given),
    }
    asked = [] if chosen.resume == AUTO else ["--resume", chosen.resume]
    command = shlex.join(["manta", "train", run_file, *chosen.overrides, *asked])
    # `exec`: the driver is the process that Ray's stop signals, without a shell before it
    server.submit(f"exec {command}", id, runtime_env, metadata)
    _tell(id, address, metadata)
    if not chosen.wait:
        return 0
    from manta.orchestrator.runs import follow_to_end

    return follow_to_end(server, id)


def _tell(id: str, address: str, metadata: Mapping[str, str]) -> None:
    print(f"submitted {id} to {address}")
    if metadata[VARIABLES]:
        print(f"with the environment variables {metadata[VARIABLES]}")
    print(f"run directory: {metadata[RUN_DIR]}")
    print(f"  manta runs status {id} --address {address}")
    print(f"  manta runs logs -f {id} --address {address}", flush=True)


def _folder(text: str) -> Path:
    folder = Path(text).absolute()
    if not folder.is_dir():
        raise ValueError(f"--working-dir: there is no folder '{text}'")
    return folder


def _inside(run_file: str, folder: Path) -> str:
    """The run file's path below `folder`, which the job starts in."""
    path = Path(run_file).absolute()
    if not path.is_relative_to(folder):
        raise ValueError(
            f"{run_file} is not below the working directory {folder}, and would not travel with "
            "the job: move it there, or give another --working-dir"
        )
    return str(path.relative_to(folder))


def _check_places(loaded: RunFile, resume: str) -> None:
    """What a run writes must outlive the job: its working directory is Ray's, which deletes it. A
    checkpoint is looked for there, under a path that does not depend on the place."""
    if "/" in resume and "://" not in resume and not Path(resume).is_absolute():
        raise ValueError(
            f"--resume: is '{resume}', a relative path: the job starts elsewhere. Give the number "
            "of the step"
        )
    places: Iterator[tuple[str, str | None]] = iter(
        (
            ("run.dir", loaded.run.dir),
            ("checkpoint.path", loaded.checkpoint.path),
            ("publish.path", loaded.publish.path),
        )
    )
    for key, path in places:
        if path is not None and "://" not in path and not Path(path).is_absolute():
            raise ValueError(
                f"{key}: is '{path}', a relative path: on the cluster that lies in a copy of the "
                "working directory which Ray deletes. Name a folder that all nodes share, such as "
                f"{key}=/shared/runs"
            )


def _variables(
    named: Sequence[str], by_run_file: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """The values of what was named on the command line, which must be set here, and of what the run
    file names, which the cluster may have by itself."""
    found = {name: environment[name] for name in by_run_file if name in environment}
    for name in named:
        if "=" in name:
            raise ValueError(
                f"--env: give the name alone, '{name.partition('=')[0]}': its value is taken from "
                "the environment, so that it does not stand in the shell's history"
            )
        if name not in environment:
            raise ValueError(f"--env {name}: it is not set here: export {name}=... first")
        found[name] = environment[name]
    return found


def _excludes(folder: Path, loaded: RunFile) -> list[str]:
    own = Path(loaded.run.dir)
    inside = [f"/{own.relative_to(folder)}"] if own.is_relative_to(folder) else []
    return [*EXCLUDED, *inside]
