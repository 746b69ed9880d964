"""What a run came to: `summary.json`, and the table printed at the end.

Owns the summary's shape and how it is worked out from the lines of `metrics.jsonl`, so that a
resumed run's summary covers all of its lives. What only the driver knows (state, ledger, phase
times, processor time) is handed in.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from manta.orchestrator.metrics import (
    ACCURACY,
    ALARM,
    BEGINS_ANEW,
    IDLE_SHARE,
    LEARNER_FELL,
    LOGPROB_GAP,
    MAX_STALENESS,
    SAMPLES,
    STALENESS,
    TOKENS,
    MetricsLine,
)
from manta.orchestrator.reward_gap import RewardGap, reward_gap
from manta.orchestrator.run_directory import RunDirectory, atomic_write

_ALARMS = 5
"""Shown in the closing table; all of them stand in `summary.json`."""

State: TypeAlias = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One stage. Accuracies are None where nothing was held out. `seconds` count from the end of
    the stage before (the first: from the start of the run), rates are over them. `rewards` are the
    held-out proxy and gold reward around a stage that was evaluated before and after it."""

    name: str
    steps: int
    accuracy_before: float | None
    accuracy_after: float | None
    seconds: float
    samples_per_second: float
    tokens_per_second: float
    rewards: RewardGap | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run, over all of its lives.

    `accuracy_start` is that of the untrained model, `accuracy_before` that before the stage that
    the run is about (the reinforcement-learning one), `accuracy_after` the last. `seconds` are wall
    seconds while a driver ran; `seconds_by_phase` and the driver's processor time are those of the
    last life.
    `idle_share` is the part of the engines' row-seconds in steps that trained on samples in which
    no sample was decoded.
    `max_logprob_gap` is the largest |engine - learner| over tokens for which both had the same
    weights; None where there were none. `products` are what its stages left: kinds by name.
    `restarts` say what fell, and was replaced, over all lives: the learner group, or the whole run.
    `alarms` are those told over all lives, each with its stage and step.
    """

    state: State
    run_directory: str
    error: str | None
    stages: tuple[StageSummary, ...]
    accuracy_start: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    seconds: float
    seconds_by_phase: Mapping[str, float]
    samples_per_second: float
    tokens_per_second: float
    staleness_mean: float | None
    staleness_max: float | None
    max_logprob_gap: float | None
    driver_cpu_ms_per_step: float | None
    ledger: Mapping[str, int]
    idle_share: float | None = None
    products: Mapping[str, str] = field(default_factory=dict)
    restarts: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()

    def figures(self) -> dict[str, float | str]:
        """The scalars by flat name, as a tracker wants them; what is absent is left out."""
        plain = asdict(self)
        for nested in ("stages", "seconds_by_phase", "ledger", "products", "restarts", "alarms"):
            del plain[nested]
        plain["restarts"], plain["alarms"] = float(len(self.restarts)), float(len(self.alarms))
        plain |= {f"phase_seconds/{name}": value for name, value in self.seconds_by_phase.items()}
        plain |= {f"ledger/{name}": value for name, value in self.ledger.items()}
        return {name: value for name, value in plain.items() if value is not None}


@dataclass(frozen=True, slots=True)
class DriverFigures:
    """What only the driver knows at the end: `seconds` are the run's (all lives), phases, processor
    seconds and `steps` this life's."""

    seconds: float
    seconds_by_phase: Mapping[str, float]
    cpu_seconds: float
    steps: int
    ledger: Mapping[str, int]


def summarise_run(
    directory: RunDirectory,
    lines: Sequence[MetricsLine],
    driver: DriverFigures,
    state: State,
    main_stage: str | None = None,
    error: str | None = None,
) -> Summary:
    """The summary of the run whose metrics are `lines`, in the order they were written.

    `main_stage` names the stage that the run is about (default: its last).
    """
    stages = _stages(lines)
    main = next((s for s in stages if s.name == main_stage), stages[-1] if stages else None)
    accuracies = _values(lines, ACCURACY)
    staleness = [
        (line.values[STALENESS], line.values.get("groups", 1.0))
        for line in lines
        if STALENESS in line.values
    ]
    weight = sum(groups for _, groups in staleness)
    return Summary(
        state=state,
        run_directory=str(directory.root),
        error=error,
        stages=stages,
        accuracy_start=accuracies[0] if accuracies else None,
        accuracy_before=main.accuracy_before if main else None,
        accuracy_after=accuracies[-1] if accuracies else None,
        seconds=driver.seconds,
        seconds_by_phase=driver.seconds_by_phase,
        samples_per_second=_rate(lines, SAMPLES, driver.seconds),
        tokens_per_second=_rate(lines, TOKENS, driver.seconds),
        staleness_mean=sum(m * g for m, g in staleness) / weight if weight else None,
        staleness_max=max(_values(lines, MAX_STALENESS), default=None),
        max_logprob_gap=max(_values(lines, LOGPROB_GAP), default=None),
        driver_cpu_ms_per_step=1e3 * driver.cpu_seconds / driver.steps if driver.steps else None,
        ledger=driver.ledger,
        idle_share=_idle_share(lines),
        restarts=_restarts(directory),
        alarms=_alarms(directory),
    )


def _restarts(directory: RunDirectory) -> tuple[str, ...]:
    """What the events say of them; events of all lives stay."""
    return tuple(
        f"{event['name']}: {event['fields']['why']}"
        for event in _events(directory)
        if event["name"] in (LEARNER_FELL, BEGINS_ANEW)
    )


def _alarms(directory: RunDirectory) -> tuple[str, ...]:
    return tuple(
        f"{each.get('stage')} step {each.get('step')}: {each['kind']}: {each['what']}"
        for each in _alarm_fields(directory)
    )


def told_in(directory: RunDirectory, stage: str) -> set[str]:
    """The kinds of the alarms that were told in `stage`, over all lives."""
    return {each["kind"] for each in _alarm_fields(directory) if each.get("stage") == stage}


def _alarm_fields(directory: RunDirectory) -> list[dict[str, Any]]:
    return [event["fields"] for event in _events(directory) if event["name"] == ALARM]


def _events(directory: RunDirectory) -> list[dict[str, Any]]:
    if not directory.events.exists():
        return []
    return [json.loads(line) for line in directory.events.read_text().split("\n")[:-1]]


def _idle_share(lines: Sequence[MetricsLine]) -> float | None:
    """The mean over steps, each by its seconds."""
    seen = [
        (line.values[IDLE_SHARE], line.values.get("time/step", 0.0))
        for line in lines
        if IDLE_SHARE in line.values and STALENESS in line.values
    ]
    seconds = sum(time for _, time in seen)
    return sum(share * time for share, time in seen) / seconds if seconds else None


def write_summary(directory: RunDirectory, summary: Summary) -> None:
    """Writes `summary.json` atomically; a number that is not finite becomes null."""
    text = json.dumps(_without_nan(asdict(summary)), indent=2, allow_nan=False)
    atomic_write(directory.summary, text + "\n")


def summary_table(summary: Summary) -> RenderableType:
    """The table printed at the end of a run."""
    table = Table(title=f"run {summary.state}", title_justify="left")
    for heading in ("stage", "steps", "accuracy", "time", "samples/s", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in summary.stages:
        table.add_row(
            stage.name,
            f"{stage.steps:,}",
            _change(stage.accuracy_before, stage.accuracy_after),
            duration(stage.seconds),
            f"{stage.samples_per_second:,.1f}",
            f"{stage.tokens_per_second:,.0f}",
        )
    table.add_section()
    table.add_row(
        "whole run",
        f"{sum(stage.steps for stage in summary.stages):,}",
        _change(summary.accuracy_start, summary.accuracy_after),
        duration(summary.seconds),
        f"{summary.samples_per_second:,.1f}",
        f"{summary.tokens_per_second:,.0f}",
    )
    notes = [Text(f"{name}: {value}") for name, value in _notes(summary)]
    return Group(table, *notes)


def duration(seconds: float) -> str:
    """`seconds` as people say it: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _notes(summary: Summary) -> list[tuple[str, str]]:
    phases = sorted(summary.seconds_by_phase.items(), key=lambda item: -item[1])
    notes = [("time by phase", ", ".join(f"{name} {duration(s)}" for name, s in phases))]
    notes += [(f"rewards of {s.name}", _rewards(s.rewards)) for s in summary.stages if s.rewards]
    if summary.staleness_mean is not None and summary.staleness_max is not None:
        mean, largest = summary.staleness_mean, summary.staleness_max
        notes.append(("staleness", f"mean {mean:.2f}, max {largest:.0f} steps"))
    if summary.idle_share is not None:
        notes.append(("engine rows idle", f"{summary.idle_share:.0%} of the time"))
    if summary.max_logprob_gap is not None:
        notes.append(("largest log-prob gap, engine to learner", f"{summary.max_logprob_gap:.2g}"))
    if summary.driver_cpu_ms_per_step is not None:
        notes.append(("driver", f"{summary.driver_cpu_ms_per_step:.1f} ms of processor per step"))
    if summary.ledger:
        notes.append(("groups", ", ".join(f"{n} {what}" for what, n in summary.ledger.items())))
    if summary.products:
        left = ", ".join(f"{name} ({kind})" for name, kind in summary.products.items())
        notes.append(("products", left))
    if summary.restarts:
        notes.append(("restarts", f"{len(summary.restarts)}: {'; '.join(summary.restarts)}"))
    notes += [("alarm", told) for told in summary.alarms[-_ALARMS:]]
    if len(summary.alarms) > _ALARMS:
        notes.append(("alarms", f"{len(summary.alarms)}, the last {_ALARMS} are above"))
    if summary.error is not None:
        notes.append(("error", summary.error))
    return [*notes, ("run directory", summary.run_directory)]


def _stages(lines: Sequence[MetricsLine]) -> tuple[StageSummary, ...]:
    """Stages in the order of their lines; a stage begins when the one before it ended."""
    stages: list[StageSummary] = []
    start = 0.0
    before: float | None = None
    for name, members in itertools.groupby(lines, key=lambda line: line.stage):
        stage = list(members)
        # An evaluation ahead of the first step; else the stage begins where the last one ended.
        first = next((line for line in stage if ACCURACY in line.values or _trains(line)), None)
        later = stage
        if first is not None and not _trains(first):
            before = first.values[ACCURACY]
            later = stage[stage.index(first) + 1 :]
        after = next(iter(reversed(_values(later, ACCURACY))), None)
        examined = [line.values for line in stage if ACCURACY in line.values]
        seconds = stage[-1].seconds - start
        stages.append(
            StageSummary(
                name=name,
                steps=len({line.step for line in stage if _trains(line)}),
                accuracy_before=before,
                accuracy_after=after,
                seconds=seconds,
                samples_per_second=_rate(stage, SAMPLES, seconds),
                tokens_per_second=_rate(stage, TOKENS, seconds),
                rewards=reward_gap(examined[0], examined[-1]) if examined[1:] else None,
            )
        )
        start, before = stage[-1].seconds, after if after is not None else before
    return tuple(stages)


def _trains(line: MetricsLine) -> bool:
    return SAMPLES in line.values


def _values(lines: Sequence[MetricsLine], name: str) -> list[float]:
    values = [line.values[name] for line in lines if name in line.values]
    return [value for value in values if not math.isnan(value)]


def _rate(lines: Sequence[MetricsLine], name: str, seconds: float) -> float:
    return sum(_values(lines, name)) / seconds if seconds > 0 else 0.0


def _change(before: float | None, after: float | None) -> str:
    shown = ["-" if value is None else f"{value:.1%}" for value in (before, after)]
    return "-" if shown == ["-", "-"] else " to ".join(shown)


def _rewards(found: RewardGap) -> str:
    told = f"proxy {found.proxy_before:.3f} to {found.proxy_after:.3f}, "
    told += f"gold {found.gold_before:.3f} to {found.gold_after:.3f}"
    if found.gap is None:
        return told
    return f"{told}; the proxy gained {found.gap:+.2f} standard deviations more than gold"


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
