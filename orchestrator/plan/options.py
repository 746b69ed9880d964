"""What `manta plan` is told on the command line. Loads nothing heavy.

Owns the options, and which of a run file's rules hold where it is only planned.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from manta.actors.engines.settings import VllmSettings
from manta.orchestrator.config import RunFile
from manta.orchestrator.plan.devices import DEVICES


@dataclass(frozen=True, slots=True)
class Options:
    """`counts` of devices to plan for; `device` by name, None to take the usual one."""

    counts: tuple[int, ...]
    what: Literal["GPUs", "CPUs"]
    measured_in: Path | None
    device: str | None
    stage: str | None
    is_json: bool


def add_to(command: argparse.ArgumentParser) -> None:
    """The command's own, beside the run file and its overrides."""
    counts = command.add_mutually_exclusive_group(required=True)
    counts.add_argument("--gpus", metavar="N,N,...", help="plan for so many GPUs")
    counts.add_argument(
        "--cpus", metavar="N,N,...", help="plan for so many CPU cores, for runs without GPUs"
    )
    command.add_argument(
        "--from",
        dest="measured_in",
        metavar="RUN_DIR",
        type=Path,
        help="speeds and lengths as measured in this run; without it they are assumed",
    )
    command.add_argument(
        "--device",
        metavar="NAME",
        help=f"whose figures to assume: {', '.join(DEVICES)} (default: h100 or cpu)",
    )
    command.add_argument("--stage", metavar="NAME", help="default: the last one that samples")
    command.add_argument("--json", dest="is_json", action="store_true", help="print JSON")


def options_of(chosen: argparse.Namespace) -> Options:
    """Raises ValueError where they make no sense."""
    on_gpus = chosen.gpus is not None
    given = chosen.gpus if on_gpus else chosen.cpus
    counts = tuple(int(each) if each.strip().isdecimal() else 0 for each in given.split(","))
    if min(counts) < 1:
        option = "--gpus" if on_gpus else "--cpus"
        raise ValueError(f"{option} {given}: give numbers of devices, such as 8,64,512")
    if chosen.device is not None and chosen.device not in DEVICES:
        known = ", ".join(DEVICES)
        raise ValueError(f"--device {chosen.device}: unknown; known are {known}")
    return Options(
        counts,
        "GPUs" if on_gpus else "CPUs",
        chosen.measured_in,
        chosen.device,
        chosen.stage,
        chosen.is_json,
    )


def checkable(run_file: RunFile) -> RunFile:
    """`run_file` without what depends on this machine or a cluster: a run is planned where it need
    not run, for devices that nobody has yet. The engine's and the transport's own rules are left to
    `manta check` where it will."""
    rollout, publish, learner = run_file.rollout, run_file.publish, run_file.learner
    if rollout.engine == "vllm":
        rollout = replace(rollout, engine="embedded", devices=0, vllm=VllmSettings())
        publish = replace(publish, transport="object_store", path=None)
        if rollout.placement == "colocated":
            learner = replace(learner, workers=rollout.sizes.max)
    run = replace(run_file.run, cluster=None)
    return replace(run_file, run=run, rollout=rollout, publish=publish, learner=learner)
