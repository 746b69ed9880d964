"""What a deep check found, on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from manta.orchestrator.deep_check import Findings, StageTimes
from manta.orchestrator.memory import MIB
from manta.orchestrator.summary import duration


def show(findings: Findings, estimated: dict[str, float], console: Console) -> None:
    """`estimated`: bytes by role that `manta check` predicts at most."""
    times = Table(title="Measured steps (the second of each training stage)", title_justify="left")
    for heading in ("stage", "a step", "of that", "all its steps"):
        times.add_column(heading, justify="left" if heading in ("stage", "of that") else "right")
    for stage in findings.stages:
        times.add_row(*_row(stage))
    memory = Table(title="Memory at most, MiB a worker (measured)", title_justify="left")
    for heading in ("role", "workers", "process", "GPU", "estimated"):
        memory.add_column(heading, justify="left" if heading == "role" else "right")
    for role in findings.roles:
        memory.add_row(
            role.role,
            f"{role.workers}",
            f"{role.peak / MIB:,.0f}" if role.peak else "-",
            f"{role.device_peak / MIB:,.0f}" if role.device_peak else "-",
            f"{estimated[role.role] / MIB:,.0f}" if role.role in estimated else "-",
        )
    if any(stage.seconds is not None for stage in findings.stages):
        console.print(times)
        console.print(f"Until the first step: {duration(findings.start_seconds)}.")
    if findings.roles:
        console.print(memory)
    if findings.error:
        console.print(f"It would fail: {findings.error}", style="bold red", markup=False)
    else:
        console.print("It works. Nothing was left behind.", style="bold green")


def _row(stage: StageTimes) -> tuple[str, str, str, str]:
    if stage.seconds is None:
        return stage.stage, "-", "", ""
    largest = sorted(stage.phases.items(), key=lambda item: -item[1])[:3]
    of_that = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in largest if seconds > 0)
    total = f"{stage.steps:,} in about {duration(stage.steps * stage.seconds)}"
    return stage.stage, f"{stage.seconds:.2f} s", of_that, total
