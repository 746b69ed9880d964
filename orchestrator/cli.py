"""The command line: `manta train`, `check`, `plan`, `eval`, `export`, `doctor`, `submit`, `runs`,
`cluster check`.

Owns arguments, exit codes and what `check` prints. Loads no torch or ray before a run starts, so
that mistakes are told at once. Exit codes: 0 done, 2 a run file or command that cannot work; a
run's own are `manta.orchestrator.run`'s.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

import manta
from manta.actors.job_variables import for_the_driver
from manta.orchestrator import (
    batch_plan,
    cluster_check,
    memory,
    memory_table,
    resume,
    run_file,
    survey,
)
from manta.orchestrator.config import RunFile
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.file_trouble import file_trouble
from manta.orchestrator.lives import Lives
from manta.orchestrator.model_sizes import model_sizes
from manta.orchestrator.plan import options as plan_options
from manta.orchestrator.role_needs import RoleNeed, role_needs
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.runs import add_arguments as add_runs_arguments
from manta.orchestrator.scorer_memory import scorer_parts
from manta.orchestrator.strict import RunFileError
from manta.orchestrator.submit import add_arguments as add_submit_arguments
from manta.orchestrator.survey import Survey

GIB = 1 << 30

EXAMPLES = """\
examples:
  manta check recipes/demo.yaml
  manta check recipes/demo.yaml --gpus 8,64,512
  manta check recipes/demo.yaml --deep
  manta plan recipes/demo.yaml --cpus 4,16 --from runs/demo
  manta train recipes/demo.yaml
  manta train recipes/demo.yaml run.name=longer stages.rl.steps=200 learner.learning_rate=1e-4
  manta train recipes/demo.yaml --resume 40
  manta eval recipes/demo.yaml --checkpoint runs/demo/checkpoints/step=000040
  manta export runs/demo exported/demo
  manta export runs/demo@40 exported/demo-40
  manta doctor runs/demo
  manta cluster check cluster.yaml --run recipes/demo.yaml rollout.workers=4
  manta submit recipes/demo.yaml run.dir=/shared/runs --address http://127.0.0.1:8265
  manta runs status demo --address http://127.0.0.1:8265

KEY=VALUE sets any key of the run file; list items go by index or name (stages.0.steps,
stages.rl.steps), values are YAML (learner.betas=[0.9,0.99]).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = _parser()
    chosen, rest = parser.parse_known_args(arguments)
    # argparse leaves positionals behind that follow an option: eval RUN --checkpoint PATH KEY=VALUE
    if any(each.startswith("-") for each in rest) or (rest and not _takes_overrides(chosen)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Workers find plug-ins in the working directory, so the command has to find them there too
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        if chosen.command == "export":
            return _export(chosen.run_dir, chosen.folder)
        if chosen.command == "cluster":
            cluster_check.check([*chosen.words, *rest], chosen.run, Console())
            return 0
        if chosen.command == "runs":
            return _runs(chosen)
        if chosen.command == "doctor":
            return _doctor(Path(chosen.run_dir), chosen.json)
        chosen.overrides += rest
        if chosen.command == "plan":
            return _plan(chosen)
        with for_the_driver() if chosen.command == "train" else nullcontext():
            return _on_run_file(chosen)
    except ValueError as error:
        return _refused(chosen, told(error))
    except OSError as error:
        refused = file_trouble(error)
        if refused is None:
            raise
        return _refused(chosen, refused)


def _refused(chosen: argparse.Namespace, why: str) -> int:
    print(f"manta {chosen.command}: {why}", file=sys.stderr)
    return 2


def _takes_overrides(chosen: argparse.Namespace) -> bool:
    return chosen.command not in ("export", "runs", "doctor")


def _on_run_file(chosen: argparse.Namespace) -> int:
    """The commands that begin with a run file. Raises ValueError."""
    if chosen.command == "submit":
        from manta.orchestrator.submit import submit

        if chosen.check_there:
            return submit(chosen, run_file.load(chosen.run_file, chosen.overrides))
        return submit(chosen, checked(chosen.run_file, chosen.overrides)[0])
    loaded, surveyed = checked(chosen.run_file, chosen.overrides)
    if chosen.command == "check":
        show(loaded, surveyed, Console(), chosen.gpus)
        if chosen.deep:
            return _deep_check(loaded, surveyed)
        print("Nothing was started.")
        return 0
    return _run(chosen, loaded)


def _plan(chosen: argparse.Namespace) -> int:
    options = plan_options.options_of(chosen)
    loaded, surveyed = checked(chosen.run_file, chosen.overrides, plan_options.checkable)
    from manta.orchestrator.plan.command import plan

    plan(loaded, surveyed, options, Console())
    return 0


def _run(chosen: argparse.Namespace, loaded: RunFile) -> int:
    """Torch and ray load from here on, when the run file is known to be good."""
    if chosen.command == "train":
        lives = Lives(RunDirectory.of(loaded))
        asked = resume.asked(chosen.resume, lives, loaded)
        if asked.step is None and lives.is_finished(loaded):
            print(
                f"{lives.directory.root}: this run is finished. Raise the steps of its last stage "
                "to go on, or choose another run.name to start anew"
            )
            return 0
        from manta.orchestrator.run import train

        return train(loaded, lives, asked)
    from manta.orchestrator.run_evaluation import evaluate

    return evaluate(loaded, chosen.checkpoint)


def _export(run_dir: str, folder: str) -> int:
    from manta.orchestrator.export import export

    return export(run_dir, Path(folder))


def _runs(chosen: argparse.Namespace) -> int:
    from manta.orchestrator.runs import runs

    return runs(chosen)


def _deep_check(loaded: RunFile, surveyed: Survey) -> int:
    """Exit code 0: it works; 1: it would fail."""
    from manta.orchestrator.deep_check import deep_check
    from manta.orchestrator.deep_report import show as show_findings

    print("A few steps of every stage, with all workers:", flush=True)
    findings = deep_check(loaded)
    show_findings(findings, _estimated(loaded, surveyed), Console())
    return 1 if findings.error else 0


def _doctor(run_dir: Path, is_json: bool) -> int:
    """Exit code 0: well or ended as it should; 1: held up, failed or dead. Raises ValueError where
    there is no such run."""
    from manta.orchestrator import doctor, doctor_report
    from manta.orchestrator.doctor_visit import visit

    diagnosis = doctor.diagnose(run_dir, visit)
    if is_json:
        print(doctor_report.as_json(diagnosis))
    else:
        doctor_report.show(diagnosis, Console())
    return 0 if diagnosis.is_well else 1


def checked(
    path: str,
    overrides: Sequence[str],
    part: Callable[[RunFile], RunFile] = lambda loaded: loaded,
) -> tuple[RunFile, Survey]:
    """The run file at `path`, loaded, and that `part` of it cross-checked. Raises RunFileError with
    all problems."""
    loaded = run_file.load(path, overrides)
    surveyed = survey.look(loaded)
    problems = cross_check(part(loaded), surveyed)
    if problems:
        raise RunFileError([f"{path}: {problem}" for problem in problems])
    return loaded, surveyed


def told(error: ValueError) -> str:
    """One problem in one line; several below a heading."""
    if isinstance(error, RunFileError) and len(error.problems) > 1:
        return f"{len(error.problems)} problems\n{error}"
    return str(error)


def show(loaded: RunFile, surveyed: Survey, console: Console, gpus: Sequence[int] = ()) -> None:
    """Prints the resolved run file, the plan in words, placement and memory; with `gpus`, also what
    a learner on so many of them would need."""
    text = run_file.dump(loaded)
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for number, stage in enumerate(loaded.stages, 1):
        algorithm = f" ({stage.algorithm.name})" if stage.algorithm is not None else ""
        console.print(f"Stage {number}, {stage.name}{algorithm}", style="bold", markup=False)
        for line in batch_plan.describe(loaded, stage, surveyed):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        console.print()
    console.print(_placement(loaded))
    _show_memory(loaded, surveyed, console, gpus)


def _placement(loaded: RunFile) -> Table:
    table = Table(title="Placement", title_justify="left")
    for heading in ("role", "workers", "CPUs each", "GPUs each"):
        table.add_column(heading, justify="left" if heading == "role" else "right")
    needs = role_needs(loaded)
    for need in needs:
        table.add_row(need.role, f"{need.sizes}", f"{need.cpus:g}", f"{need.gpus:g}")
    table.add_section()
    table.add_row("total", *_totals(needs, [need.sizes.min for need in needs]))
    if any(need.more for need in needs):
        table.add_row("at most", *_totals(needs, [need.sizes.max for need in needs]))
    return table


def _estimated(loaded: RunFile, surveyed: Survey) -> dict[str, float]:
    """Bytes at most by role; nothing where they cannot be told."""
    try:
        parts = memory.estimate(loaded, surveyed)
    except ValueError:
        return {}
    total: dict[str, float] = {}
    for part in parts:
        total[part.role] = total.get(part.role, 0.0) + part.bytes
    return total


def _totals(needs: Sequence[RoleNeed], workers: Sequence[int]) -> tuple[str, str, str]:
    """Workers, CPUs and GPUs, where each role has so many `workers`."""
    cpus = sum(count * need.cpus for need, count in zip(needs, workers, strict=True))
    gpus = sum(count * need.gpus for need, count in zip(needs, workers, strict=True))
    return f"{sum(workers)}", f"{cpus:g}", f"{gpus:g}"


def _show_memory(loaded: RunFile, surveyed: Survey, console: Console, gpus: Sequence[int]) -> None:
    try:
        parts = list(memory.estimate(loaded, surveyed))
        assert surveyed.vocab_size is not None
        parts += scorer_parts(loaded, surveyed.vocab_size)
    except ValueError as error:
        console.print(f"Memory: not estimated: {error}", markup=False, soft_wrap=True)
        return
    table = Table(title="Memory at most, MiB a worker (estimated)", title_justify="left")
    table.add_column("role")
    table.add_column("what")
    table.add_column("MiB", justify="right")
    for role in dict.fromkeys(part.role for part in parts):
        own = [part for part in parts if part.role == role]
        for part in own:
            table.add_row(role, part.what, f"{part.bytes / memory.MIB:,.1f}")
        table.add_row(role, "total", f"{sum(part.bytes for part in own) / memory.MIB:,.1f}")
        table.add_section()
    console.print(table)
    if gpus and loaded.needs_learner:
        assert surveyed.vocab_size is not None
        sizes = model_sizes(loaded.model, surveyed.vocab_size)
        console.print(_by_backend(memory_table.memory_table(loaded, sizes, gpus), gpus))


def _by_backend(rows: Sequence[memory_table.Row], gpus: Sequence[int]) -> Table:
    title = "Learner by backend, GiB a rank at most (estimated): on its GPU / on its host (rank 0)"
    table = Table(title=title, title_justify="left")
    table.add_column("backend")
    for count in gpus:
        table.add_column(f"{count:,} GPU{'s' if count > 1 else ''}", justify="right")
    for row in rows:
        cells = [f"{need.device / GIB:,.1f} / {need.host / GIB:,.1f}" for need in row.needs]
        table.add_row(row.backend, *cells)
    return table


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(each) if each.isdecimal() else 0 for each in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of GPUs, such as 8,64,512")
    return counts


def _add_check_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--gpus",
        metavar="N,N,...",
        type=_counts,
        default=(),
        help="say what the learner would need on so many GPUs, by backend",
    )
    command.add_argument(
        "--deep",
        action="store_true",
        help="start all workers, make a few steps, measure them, and leave nothing behind",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="manta",
        description="Online reinforcement learning of generative models on Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"manta {manta.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, told in (
        ("train", "run the stages of a run file, or resume them"),
        ("check", "say what a run file would do, and start nothing"),
        ("plan", "simulate a run file on so many devices, and say how to split them"),
        ("eval", "evaluate a checkpoint with the evaluation of a run file"),
        ("submit", "send a run to a running cluster"),
    ):
        command = commands.add_parser(
            name,
            help=told,
            description=told,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("run_file", metavar="RUN.yaml")
        command.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
        if name == "eval":
            command.add_argument("--checkpoint", metavar="PATH", help="default: the run's newest")
        if name in ("train", "submit"):
            resume.add_argument(command)
        if name == "plan":
            plan_options.add_to(command)
        if name == "submit":
            add_submit_arguments(command)
        if name == "check":
            _add_check_arguments(command)
    told = "write a checkpoint as a Hugging Face folder, for transformers and vLLM"
    command = commands.add_parser("export", help=told, description=told)
    command.add_argument("run_dir", metavar="RUN_DIR[@STEP]", help="default: its newest checkpoint")
    command.add_argument("folder", metavar="FOLDER", help="what to write; it must be new or empty")
    told = "say what a run waits for, and who holds it up"
    command = commands.add_parser("doctor", help=told, description=told)
    command.add_argument("run_dir", metavar="RUN_DIR")
    command.add_argument("--json", action="store_true", help="for programs")
    told = "the runs that were submitted to a cluster"
    add_runs_arguments(commands.add_parser("runs", help=told, description=told))
    told = "what a cluster file offers, and whether a run fits on it"
    command = commands.add_parser("cluster", help=told, description=told)
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    cluster_check.add_arguments(actions.add_parser("check", help=told, description=told))
    return parser
