"""A diagnosis on the terminal, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from manta.orchestrator.doctor import Culprit, Diagnosis
from manta.orchestrator.health import WorkerReport
from manta.orchestrator.summary import duration

_STATE_STYLES = {"alive": "green", "waiting": "yellow", "starting": "yellow", "busy": "yellow"}
_STACK_LINES = 40
_IDLE = ("/threading.py", "/ray/", "/concurrent/", "/asyncio/", "/selectors.py", "/socket.py")


def as_json(diagnosis: Diagnosis) -> str:
    return json.dumps(asdict(diagnosis), indent=1)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """The verdict first, then what it rests on."""
    status = diagnosis.status
    style = "bold green" if diagnosis.is_well else "bold red"
    console.print(f"{status.run}: {diagnosis.verdict}", style=style, markup=False, soft_wrap=True)
    for line in _lines(diagnosis):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if status.workers and diagnosis.is_driver_alive:
        console.print(_workers(status.workers))
    for each in diagnosis.culprits:
        _show_culprit(each, console)
    if diagnosis.unreached:
        console.print(f"Not looked at: {diagnosis.unreached}.", markup=False, soft_wrap=True)
    for advice in diagnosis.advice:
        console.print(f"What to do: {advice}", style="bold", markup=False, soft_wrap=True)


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    status = diagnosis.status
    stage = f"{status.stage} {status.stage_step}/{status.stage_steps}"
    yield f"stage   {stage} (run step {status.step}), {status.state}, start {status.incarnation}"
    yield f"driver  {diagnosis.driver}"
    usual = diagnosis.usual_seconds
    if usual is not None:
        told = f"steps   usually {duration(usual)} each"
        if diagnosis.is_driver_alive:
            told += f"; the last one ended {duration(diagnosis.standing_seconds)} ago"
        yield told
    for wait, waited in diagnosis.waits:
        left = duration(max(0.0, wait.deadline_seconds - waited))
        yield f"waits   for {wait.name}: {duration(waited)} (its deadline is in {left})"
    if diagnosis.is_driver_alive and not diagnosis.waits and status.state == "running":
        yield "waits   for nothing"
    for gone in status.departed[-5:]:
        yield f"gone    {gone.where}"


def _workers(workers: tuple[WorkerReport, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("worker", "process", "on", "state", "last sign", "MiB", "doing"):
        numeric = heading in ("process", "last sign", "MiB")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for each in workers:
        process = None if each.identity is None else each.identity.process
        style = _STATE_STYLES.get(each.state, "red")
        table.add_row(
            each.name,
            "" if process is None else f"{process.pid}",
            "" if process is None else process.host,
            f"[{style}]{each.state}[/{style}]",
            duration(each.silent_seconds),
            f"{each.memory / 2**20:.0f}" if each.memory else "",
            each.doing,
        )
    return table


def telling(stacks: str) -> str:
    """The threads of `stacks` that are anywhere but in the waiting of a library's own threads; all
    of them where there is none."""
    threads = [thread.strip() for thread in stacks.split("\n\n")]
    shown = [thread for thread in threads if any(map(_tells, thread.splitlines()[1:]))]
    return "\n\n".join(shown or threads)


def _tells(line: str) -> bool:
    return "File " in line and not any(each in line for each in _IDLE)


def _show_culprit(culprit: Culprit, console: Console) -> None:
    told = culprit.why or f"at work: {culprit.worker.doing}"
    console.print(f"\n{culprit.worker.where}: {told}", style="bold", markup=False, soft_wrap=True)
    examined = culprit.examined
    if examined is None:
        return
    state = examined.state or "its process is gone"
    if examined.state:
        state += f", {examined.cpu_share:.0%} of a processor"
    console.print(f"  {state}", markup=False, highlight=False)
    stacks = telling(examined.stacks)
    for heading, text in (("stacks", stacks), ("end of its log", examined.log)):
        if text.strip():
            console.print(f"  {heading}:", markup=False)
            for line in text.rstrip().splitlines()[:_STACK_LINES]:
                console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
