"""`manta plan`: from a checked run file and options to the table.

Owns the choice between measured and assumed speeds, and what is printed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from manta.envs.records import Json
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.plan import devices
from manta.orchestrator.plan.assumed import assumed_basis
from manta.orchestrator.plan.basis import Basis
from manta.orchestrator.plan.calibration import calibrate
from manta.orchestrator.plan.measured import basis_of, fitted
from manta.orchestrator.plan.options import Options
from manta.orchestrator.plan.shapes import Simulated
from manta.orchestrator.plan.splits import Candidate, Split, best_of, possible, search, unit_of
from manta.orchestrator.simulation.predict import Prediction
from manta.orchestrator.survey import Survey


@dataclass(frozen=True, slots=True)
class Plan:
    """For `count` devices: the splits that were looked at, and the best of them."""

    count: int
    candidates: tuple[Candidate, ...]
    best: Candidate


def plan(run_file: RunFile, surveyed: Survey, options: Options, console: Console) -> None:
    """Prints the plan. Raises ValueError where there is nothing to plan, or too few devices."""
    stage = _stage(run_file, options.stage)
    prompts = surveyed.prompts.get(stage.name)
    num_tasks = prompts.num_train if prompts is not None and prompts.num_train else 1_000_000
    simulated = Simulated(run_file, stage, num_tasks)
    basis = _basis(run_file, stage, surveyed, options)
    plans = [_plan(simulated, basis, count, options) for count in options.counts]
    if options.is_json:
        console.out(json.dumps(_as_json(run_file, stage, basis, plans, options), indent=2))
        return
    _show(run_file, stage, basis, plans, options, console)


def _stage(run_file: RunFile, name: str | None) -> StageConfig:
    sampling = [stage for stage in run_file.stages if stage.samples_to_train]
    found = [stage for stage in sampling if name in (None, stage.name)]
    if not found:
        known = ", ".join(stage.name for stage in sampling) or "none"
        asked = "" if name is None else f" called {name}"
        raise ValueError(f"no stage{asked} samples to train on; those that do: {known}")
    return found[-1]


def _plan(simulated: Simulated, basis: Basis, count: int, options: Options) -> Plan:
    run_file = simulated.run_file
    is_shared = run_file.rollout.placement == "colocated"
    unit = unit_of(run_file, options.what == "CPUs")
    splits = possible(count, unit, is_shared, basis.fits, options.what)

    def look(split: Split) -> Prediction:
        return simulated.predict(basis, split.engines, split.ranks)

    candidates = search(splits, look)
    return Plan(count, tuple(candidates), best_of(candidates))


def _basis(run_file: RunFile, stage: StageConfig, surveyed: Survey, options: Options) -> Basis:
    if options.measured_in is not None:
        return _measured(options.measured_in, stage, options)
    device = options.device or ("h100" if options.what == "GPUs" else "cpu")
    return assumed_basis(run_file, stage, surveyed, devices.DEVICES[device])


def _measured(folder: Path, stage: StageConfig, options: Options) -> Basis:
    if options.device is not None:
        raise ValueError("--device is what to assume without --from: give one of the two")
    found = calibrate(folder, stage.name)
    on_gpus = found.run_file.rollout.devices > 0
    if on_gpus != (options.what == "GPUs"):
        there, here = ("GPUs", "--gpus") if on_gpus else ("CPUs", "--cpus")
        raise ValueError(f"--from {folder}: that run was on {there}, so plan with {here}")
    return basis_of(fitted(found), stage)


def _show(
    run_file: RunFile,
    stage: StageConfig,
    basis: Basis,
    plans: Sequence[Plan],
    options: Options,
    console: Console,
) -> None:
    staleness = run_file.max_staleness(stage)
    assert stage.algorithm is not None
    console.print(
        f"Stage {stage.name}: {stage.prompts_per_step:,} prompts x "
        f"{stage.algorithm.samples_per_prompt:,} samples a step, staleness at most {staleness}",
        style="bold",
        markup=False,
        highlight=False,
    )
    for line in basis.told:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    for found in plans:
        console.print()
        console.print(split_table(found, options.what))
        best = found.best
        console.print(
            f"best: {_told(best.split)}: {best.prediction.step_seconds:.3g} s a step, "
            f"{best.prediction.tokens_per_second:,.0f} tokens/s",
            markup=False,
            highlight=False,
        )


def split_table(found: Plan, what: str) -> Table:
    """The splits of one number of devices, the best one marked."""
    table = Table(title=f"{found.count:,} {what}", title_justify="left")
    headings = ("", "engines", "learner\nranks", "step s", "tokens/s")
    for heading in (*headings, "engines\nidle", "rows\nidle", "learner\nidle", "staleness"):
        table.add_column(heading, justify="right")
    for each in found.candidates:
        is_best = each is found.best
        got = each.prediction
        table.add_row(
            "best" if is_best else "",
            f"{each.split.engines:,}",
            f"{each.split.ranks:,}",
            f"{got.step_seconds:,.3g}" if got.step_seconds < 1000 else f"{got.step_seconds:,.0f}",
            f"{got.tokens_per_second:,.0f}",
            f"{got.engines_idle:.0%}",
            f"{got.rows_idle:.0%}",
            f"{got.learner_idle:.0%}",
            f"{got.staleness_mean:.2f}",
            style="bold" if is_best else None,
        )
    return table


def _told(split: Split) -> str:
    engines = f"{split.engines:,} engine{'s' if split.engines > 1 else ''}"
    ranks = f"{split.ranks:,} learner rank{'s' if split.ranks > 1 else ''}"
    return f"{engines} and {ranks}" + (", on the same devices in turns" if split.is_shared else "")


def _as_json(
    run_file: RunFile,
    stage: StageConfig,
    basis: Basis,
    plans: Sequence[Plan],
    options: Options,
) -> dict[str, Json]:
    return {
        "run": run_file.run.name,
        "stage": stage.name,
        "devices": options.what,
        "basis": list(basis.told),
        "plans": [
            {
                "count": found.count,
                "splits": [
                    {
                        **asdict(each.split),
                        **asdict(each.prediction),
                        "is_best": each is found.best,
                    }
                    for each in found.candidates
                ],
            }
            for found in plans
        ],
    }
