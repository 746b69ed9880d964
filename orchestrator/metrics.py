"""The numbers of a run: what is measured of a step, and the files it is written to.

Owns `metrics.jsonl` (one object a line: stage, step, seconds, then flat metric names) and
`events.jsonl` (seconds, name, fields), and the pure function from a step's summaries to metrics.
Who logs when is the loop's business; trackers and pictures read the same names.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from manta.actors.engines.occupancy import EngineWork, RowSeconds
from manta.actors.line_file import LineFile
from manta.envs.group import REFERENCED_AT
from manta.envs.records import Float32, GroupSummary, Int32, Json
from manta.orchestrator.run_directory import RunDirectory

REWARD: Final = "reward/mean"
ACCURACY: Final = "eval/accuracy"
LENGTH: Final = "length/mean"
SAMPLES: Final = "samples"
TOKENS: Final = "tokens/completion"
STALENESS: Final = "staleness/mean"
MAX_STALENESS: Final = "staleness/max"
TOKEN_STALENESS: Final = "staleness/token_mean"
IDLE_SHARE: Final = "rollout/idle_share"
CAP: Final = "rollout/cap_tokens"
LEARNER_FELL, BEGINS_ANEW = "learner group fell", "run begins anew"
"""Events after which something was started again."""
LEARNER_REGROUPS: Final = "learner group of other ranks"
ALARM: Final = "alarm"
"""The event of an alarm; its fields are those of `manta.orchestrator.alarms.Alarm`, with stage and
step."""
DRIVER_CPU: Final = "time/driver_cpu"
KL: Final = "learner/kl_reference"
RANKS: Final = "learner/ranks"
ENTROPY: Final = "learner/entropy"
ZERO_VARIANCE: Final = "groups/zero_variance_share"
LOGPROB_GAP: Final = "mismatch/same_version/gap_max"
MISMATCH_KL: Final = "mismatch/same_version/kl"
"""Names that others look for; those below `learner` and `mismatch` are the learner's own.
`DRIVER_CPU` is in processor seconds of the driver's process, all of its threads. `LOGPROB_GAP` is
the largest |engine - learner| of a step's tokens that were sampled under the weights that the
learner held; what was sampled under older ones is below `mismatch/stale`. `ZERO_VARIANCE` is
`manta.orchestrator.outcomes`'."""

_REWARD_QUANTILES = {"p05": 5, "p50": 50, "p95": 95}
_TOTALS = ("mean", "std", "agreement", *_REWARD_QUANTILES)


@dataclass(frozen=True, slots=True)
class MetricsLine:
    """One line of `metrics.jsonl`: `seconds` since the run began; a null is NaN in `values`."""

    stage: str
    step: int
    seconds: float
    values: Mapping[str, float]


class MetricsWriter:
    """Appends to `metrics.jsonl` and `events.jsonl` of a run directory, a flush a line.

    The clock of a resumed run goes on from the last line there was, so that seconds only rise; the
    time while no driver ran does not count.
    """

    def __init__(
        self, directory: RunDirectory, clock: Callable[[], float] = time.monotonic
    ) -> None:
        before = max(_last_seconds(directory.metrics), _last_seconds(directory.events))
        self._clock = clock
        self._start = clock() - before
        self._metrics = LineFile(directory.metrics)
        self._events = LineFile(directory.events)

    def seconds(self) -> float:
        """Wall seconds since the run began."""
        return self._clock() - self._start

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line; numbers that are not finite become null."""
        line: dict[str, Json] = {"stage": stage, "step": step, "seconds": round(self.seconds(), 3)}
        line |= {name: _finite(value) for name, value in metrics.items()}
        self._metrics.append(json.dumps(line, allow_nan=False))

    def event(self, name: str, fields: Mapping[str, Json]) -> None:
        """Writes what happened (a death, a publish, a checkpoint) to `events.jsonl`."""
        line = {
            "seconds": round(self.seconds(), 3),
            "name": name,
            "fields": _jsonable(dict(fields)),
        }
        self._events.append(json.dumps(line, allow_nan=False))

    def position(self) -> int:
        """Where `metrics.jsonl` ends, in bytes: what a checkpoint keeps."""
        return self._metrics.position()

    def truncate(self, position: int) -> None:
        """Cuts the metrics of steps that a resume leaves behind. Events stay: they happened.

        Raises ValueError where no line ends at `position`.
        """
        self._metrics.truncate(position)

    def close(self) -> None:
        self._metrics.close()
        self._events.close()


def read_metrics(path: Path) -> list[MetricsLine]:
    """The lines of a `metrics.jsonl`, without a torn last one; safe while a run writes it.

    Raises ValueError, naming file and line, where a line is no metrics line.
    """
    lines = []
    for number, text in enumerate(_whole_lines(path), start=1):
        values = _parse(path, number, text)
        try:
            stage, step, seconds = values.pop("stage"), values.pop("step"), values.pop("seconds")
        except KeyError as error:
            raise ValueError(f"{path}:{number} is no line of metrics: no {error}") from error
        numbers = {name: math.nan if v is None else float(v) for name, v in values.items()}
        lines.append(MetricsLine(stage, step, seconds, numbers))
    return lines


def step_metrics(
    step: int,
    summaries: Sequence[GroupSummary],
    update: Mapping[str, float],
    phases: Mapping[str, float],
    seconds: float,
) -> dict[str, float]:
    """The metrics of the step that trained on `summaries` and took `seconds`.

    `step` counts the optimizer steps before this one, so that weights `step` old are on-policy:
    staleness of a group is `step - oldest.step`, that of a token `step - version.step`. `update` is
    what the learner reported (a name without a slash goes below `learner/`), `phases` seconds by
    phase. Groups of given answers have no staleness, and groups that no component looked at and
    samples that none could score (NaN) no reward; a mean over nothing is left out. How often groups
    are right is `manta.orchestrator.outcomes`'.
    """
    metrics = _rewards(summaries) | _lengths(summaries) | _groups(summaries)
    metrics |= (
        _companions(summaries)
        | _cut_off(summaries)
        | _staleness(step, summaries)
        | _reference(summaries)
    )
    metrics |= {n if "/" in n else f"learner/{n}": value for n, value in update.items()}
    metrics |= {f"time/{name}": value for name, value in phases.items()}
    metrics["time/step"] = seconds
    if seconds > 0:
        metrics["speed/tokens_per_second"] = metrics[TOKENS] / seconds
        metrics["speed/samples_per_second"] = metrics[SAMPLES] / seconds
    return metrics


_WORK = tuple(field.name for field in fields(EngineWork))


def engine_metrics(rows: RowSeconds) -> dict[str, float]:
    """Of all engines together since the publish before: the share of row-seconds without a sample,
    and, from engines that can tell, the sums of `EngineWork` below `engine/`. Nothing from engines
    that do not count."""
    if rows.total <= 0:
        return {}
    metrics = {IDLE_SHARE: 1 - rows.busy / rows.total, "engine/busy_row_seconds": rows.busy}
    if rows.work.steps:
        metrics |= {f"engine/{name}": float(getattr(rows.work, name)) for name in _WORK}
    return metrics


def engine_work(values: Mapping[str, float]) -> EngineWork:
    """What `engine_metrics` wrote of a step; nothing where it wrote nothing."""
    seen = {name: values.get(f"engine/{name}", 0.0) for name in _WORK}
    return EngineWork(
        round(seen["steps"]),
        round(seen["rows"]),
        round(seen["rows_squared"]),
        seen["seconds"],
        seen["row_seconds"],
        round(seen["prefill_tokens"]),
        seen["prefill_seconds"],
    )


def _rewards(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    rewards = _joined([s.rewards for s in summaries if s.components])
    if not rewards.size:
        return {}
    scored = rewards[~np.isnan(rewards)]
    metrics = {"reward/unscored_share": 1 - scored.size / rewards.size}
    if scored.size:
        metrics |= {REWARD: float(scored.mean()), "reward/std": float(scored.std())}
        found = np.percentile(scored, list(_REWARD_QUANTILES.values())).tolist()
        names = (f"reward/{name}" for name in _REWARD_QUANTILES)
        metrics |= dict(zip(names, found, strict=True))
    for component in sorted({name for s in summaries for name in s.components}):
        values = _joined([s.components[component] for s in summaries if component in s.components])
        present = values[~np.isnan(values)]
        name = f"reward/{component}" + ("_component" if component in _TOTALS else "")
        if present.size:
            metrics[name] = float(present.mean())
        metrics[f"{name}/present"] = present.size / rewards.size
    return metrics


def _lengths(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Tokens that the policy spoke (`num_tokens`) by sample, and totals."""
    tokens = _joined([s.num_tokens for s in summaries])
    metrics = {
        SAMPLES: float(tokens.size),
        TOKENS: float(tokens.sum()),
        "tokens/total": float(_joined([s.lengths for s in summaries]).sum()),
    }
    if tokens.size:
        median, high = np.percentile(tokens, (50, 95))
        metrics[LENGTH] = float(tokens.mean())
        metrics |= {"length/p50": float(median), "length/p95": float(high)}
        metrics["length/max"] = float(tokens.max())
        truncated = sum(int(s.is_truncated.sum()) for s in summaries)
        metrics["length/truncated_share"] = truncated / tokens.size
    return metrics


def _companions(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Of the rows beside the samples, which no other figure of samples counts."""
    found = [s.companion for s in summaries if s.companion is not None]
    if not found:
        return {}
    return {
        "companion/reward": sum(each.reward for each in found) / len(found),
        "companion/length": sum(each.num_tokens for each in found) / len(found),
    }


def _cut_off(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """What redundant samples cost, and what they hide: who ends first is short. Nothing where no
    sample was cut off.

    `length/cut_off_mean`: tokens of the cut samples when they were cut, to be held against the
    `length/mean` of those that train. `length/begun_mean`: over both; without redundant samples the
    mean would be that at least. Then their shares of the samples begun and of the tokens made.
    """
    cut = np.array([tokens for s in summaries for tokens in s.cut_off], np.float64)
    taken = _joined([s.num_tokens for s in summaries])
    if not cut.size:
        return {}
    begun, made = cut.size + taken.size, cut.sum() + taken.sum()
    return {
        "length/cut_off_mean": float(cut.mean()),
        "length/begun_mean": float(made / begun),
        "length/cut_off_share": cut.size / begun,
        "tokens/cut_off_share": float(cut.sum() / max(1.0, made)),
    }


def _staleness(step: int, summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Two views: of groups, by the oldest version that any of their tokens was sampled under, and
    of the tokens that train, each by its own."""
    ages = [step - s.oldest.step for s in summaries if s.oldest is not None]
    if not ages:
        return {}
    metrics = {STALENESS: sum(ages) / len(ages), MAX_STALENESS: float(max(ages))}
    tokens: Counter[int] = Counter()
    for summary in summaries:
        for version, count_n in summary.tokens_by_version.items():
            tokens[step - version.step] += int(count_n.sum())
    total = tokens.total()
    too_old = sum(s.num_too_old for s in summaries)
    if too_old:
        metrics["staleness/too_old_share"] = too_old / (total + too_old)
    if total:
        metrics[TOKEN_STALENESS] = sum(age * count for age, count in tokens.items()) / total
        for age, count in sorted(tokens.items()):
            metrics[f"staleness/token_share/{age}"] = count / total
    return metrics


def _groups(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    metrics = {"groups": float(len(summaries))}
    for name in sorted({name for s in summaries for name in s.timings} - {REFERENCED_AT}):
        values = [s.timings[name] for s in summaries if name in s.timings]
        metrics[f"time/group/{name}"] = sum(values) / len(values)
    return metrics


def _reference(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Nothing where no reference scored. `reference/wait_seconds`: from when the step's last group
    had its samples and rewards to when the last one had its reference log-probs too.
    `reference/overlap_share`: of the time that scoring took, summed over groups, the share in which
    other samples of the step were still being made; 1 where it cost the step nothing."""
    timings = [s.timings for s in summaries if REFERENCED_AT in s.timings]
    if not timings:
        return {}
    ends = [each[REFERENCED_AT] for each in timings]
    begins = [each[REFERENCED_AT] - each["reference"] for each in timings]
    rewarded = [b + each.get("score", 0.0) for b, each in zip(begins, timings, strict=True)]
    sampled = max(begins)
    took = sum(ends) - sum(begins)
    beside = sum(min(e, sampled) - b for b, e in zip(begins, ends, strict=True))
    metrics = {"reference/wait_seconds": max(0.0, max(ends) - max(rewarded))}
    return metrics | ({"reference/overlap_share": beside / took} if took > 0 else {})


def _joined(arrays: Sequence[Float32] | Sequence[Int32]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.empty(0), *arrays])


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _jsonable(value: Json) -> Json:
    """`value` with null for every number that JSON cannot say."""
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_bytes().split(b"\n")
    return [line.decode(errors="replace") for line in lines[:-1]]


def _parse(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number} is not JSON ({error}): remove the line") from error
    if not isinstance(line, dict):
        raise ValueError(f"{path}:{number} is no JSON object: remove the line")
    return line


def _last_seconds(path: Path) -> float:
    """When the last whole line of a metrics or events file was written; 0 for a new file."""
    lines = _whole_lines(path) if path.exists() else []
    return float(_parse(path, len(lines), lines[-1])["seconds"]) if lines else 0.0
