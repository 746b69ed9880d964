"""The learning curve as a picture, drawn from the lines of `metrics.jsonl`.

Owns what the picture shows: mean reward and held-out accuracy over steps with the stages' borders;
below response length and KL, and the entropy with the share of groups that teach nothing, which say
how much is left to learn from. matplotlib loads only when a picture is drawn, and needs no
display.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manta.orchestrator.metrics import (
    ACCURACY,
    ENTROPY,
    KL,
    LENGTH,
    REWARD,
    ZERO_VARIANCE,
    MetricsLine,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _VIOLET = "#2a6fbb", "#d9622b", "#3f8f56", "#7b5aa6"
_TEAL, _ROSE = "#23858c", "#b2476b"
_GREY, _INK = "#8a8f98", "#2b2f36"
_STYLE = {
    "font.size": 10,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "lines.solid_capstyle": "round",
}
_SMOOTH_FROM = 40
_NEAR_AXIS = 0.1
_UNIT_SCALE = (-0.1, 1.25)
_LETTERS_ACROSS = 75
"""About as many letters of a stage's name fit the picture's width."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric over the run's steps, piece by piece: one (steps, values) pair a stage."""

    pieces: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(itertools.chain.from_iterable(values for _, values in self.pieces))


def has_curve(lines: Sequence[MetricsLine]) -> bool:
    """Is there a reward or an accuracy to draw? Runs on given answers may have neither."""
    lines = run_steps(lines)
    return bool(curve(lines, REWARD).values or curve(lines, ACCURACY).values)


def draw_learning_curve(lines: Sequence[MetricsLine], path: Path, title: str) -> None:
    """Draws `lines`, in the order they were written, to the PNG file `path`.

    Raises ValueError where there is neither a reward nor an accuracy to draw.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = run_steps(lines)
    reward, accuracy = _learnt(lines), curve(lines, ACCURACY)
    if not reward.values and not accuracy.values:
        raise ValueError("the metrics hold neither rewards nor held-out accuracies to draw")
    lower = [shown for shown in (_behaviour(lines), _exploration(lines)) if shown]
    with rc_context(_STYLE):
        size = (8.4, 3.8 + 1.8 * len(lower))
        figure = Figure(figsize=size, dpi=144, layout="constrained")
        ratios = (5, *(3 for _ in lower))
        panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
        _draw_progress(panels[0, 0], reward, accuracy)
        for (panel,), shown in zip(panels[1:], lower, strict=True):
            _draw_pair(panel, shown)
        _draw_stages([panel for (panel,) in panels], lines)
        panels[-1, 0].set_xlabel("step")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
        figure.savefig(path)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A curve of a lower panel. `is_share`: of 0 to 1, and written as percents."""

    values: Curve
    label: str
    color: str
    is_share: bool = False


def _behaviour(lines: Sequence[MetricsLine]) -> list[_Shown]:
    return _that_exist(
        _Shown(curve(lines, LENGTH), "response length\n(tokens)", _GREEN),
        _Shown(curve(lines, KL), "KL to reference\n(nats)", _VIOLET),
    )


def _exploration(lines: Sequence[MetricsLine]) -> list[_Shown]:
    return _that_exist(
        _Shown(curve(lines, ENTROPY), "entropy\n(nats a token)", _TEAL),
        _Shown(curve(lines, ZERO_VARIANCE), "groups of equal\nrewards", _ROSE, is_share=True),
    )


def _that_exist(*shown: _Shown) -> list[_Shown]:
    return [each for each in shown if each.values.values]


def run_steps(lines: Sequence[MetricsLine]) -> list[MetricsLine]:
    """`lines` with steps that rise over the whole run, also where stages count from zero."""
    shifted: list[MetricsLine] = []
    shift = last = 0
    for _, members in itertools.groupby(lines, key=lambda line: line.stage):
        stage = list(members)
        if stage[0].step + shift < last:
            shift = last
        shifted += [dataclasses.replace(line, step=line.step + shift) for line in stage]
        last = shifted[-1].step
    return shifted


def curve(lines: Sequence[MetricsLine], name: str) -> Curve:
    """The finite values of metric `name`; of two at one step of a stage, the later."""
    pieces = []
    for _, members in itertools.groupby(lines, key=lambda line: line.stage):
        points = {line.step: line.values[name] for line in members if name in line.values}
        finite = {step: value for step, value in points.items() if math.isfinite(value)}
        if finite:
            pieces.append((tuple(finite), tuple(finite.values())))
    return Curve(tuple(pieces))


def _learnt(lines: Sequence[MetricsLine]) -> Curve:
    """The rewards of the stages that are examined, if any of them has rewards; else all.

    What others reward (data that is sampled, answers that a reward model learns from) may be on
    another scale, and is not what the policy learns.
    """
    examined = {line.stage for line in lines if ACCURACY in line.values}
    rewards = curve([line for line in lines if line.stage in examined], REWARD)
    return rewards if rewards.values else curve(lines, REWARD)


def _draw_progress(axes: Axes, reward: Curve, accuracy: Curve) -> None:
    """Reward and accuracy; on one scale where rewards look like shares, else on two."""
    low, high = _UNIT_SCALE
    on_one_scale = all(low <= value <= high for value in reward.values)
    right = axes if on_one_scale or not accuracy.values else axes.twinx()
    axes.grid(axis="y")
    _line(axes, reward, _BLUE)
    for steps, values in accuracy.pieces:
        right.plot(steps, values, color=_ORANGE, linewidth=2, marker="o", markersize=4.5)
    if on_one_scale:
        shown = (*reward.values, *accuracy.values)
        axes.set_ylim(min(0.0, *shown, 0.0), 1.06 * max(1.0, *shown))
        axes.set_ylabel("reward, share correct")
        key = [("mean reward of a sample", _BLUE)] if reward.values else []
        key += [("held-out accuracy", _ORANGE)] if accuracy.values else []
        _draw_key(axes, key)
    else:
        axes.set_ylabel("mean reward of a sample", color=_BLUE)
    if right is not axes:
        right.set_ylim(0.0, 1.06)
        right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        right.set_ylabel("held-out accuracy", color=_ORANGE)
    _mark_accuracies(right, accuracy)


def _draw_pair(axes: Axes, shown: Sequence[_Shown]) -> None:
    """One curve on the left axis, one on the right."""
    for index, each in enumerate(shown):
        panel = axes if index == 0 else axes.twinx()
        _line(panel, each.values, each.color)
        panel.set_ylabel(each.label, color=each.color)
        if each.is_share:
            panel.set_ylim(0.0, 1.04)
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        else:
            panel.set_ylim(bottom=min(0.0, *each.values.values))
    axes.grid(axis="y")


def _line(axes: Axes, values: Curve, color: str) -> None:
    """Every step faintly, and their moving mean on top where steps are many."""
    for steps, points in values.pieces:
        window = max(1, len(points) // 25)
        if len(points) < _SMOOTH_FROM:
            axes.plot(steps, points, color=color, linewidth=2)
            continue
        axes.plot(steps, points, color=color, linewidth=0.8, alpha=0.3)
        axes.plot(steps, _moving_mean(points, window), color=color, linewidth=2)


def _moving_mean(points: Sequence[float], window: int) -> list[float]:
    """The mean of up to `window` points to either side of each."""
    sums = np.concatenate([[0.0], np.cumsum(points)])
    at = np.arange(len(points))
    start, end = np.maximum(at - window, 0), np.minimum(at + window + 1, len(points))
    return [float(mean) for mean in (sums[end] - sums[start]) / (end - start)]


def _mark_accuracies(axes: Axes, accuracy: Curve) -> None:
    """Writes where each stage began, and where the last one ended, beside the points."""
    from matplotlib.patheffects import withStroke

    # Below the curve where one starts (not near the axis), above it where the last ends.
    places = [
        (steps[0], values[0], "left", (0, 10) if values[0] < _NEAR_AXIS else (4, -14))
        for steps, values in accuracy.pieces
    ]
    if len(accuracy.values) > 1:
        steps, values = accuracy.pieces[-1]
        places.append((steps[-1], values[-1], "right", (-4, 9)))
    for step, value, side, offset in places:
        axes.annotate(
            f"{value:.1%}",
            (step, value),
            xytext=offset,
            textcoords="offset points",
            ha=side,
            color=_ORANGE,
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _draw_stages(panels: Sequence[Axes], lines: Sequence[MetricsLine]) -> None:
    """A border where each stage but the first begins, and the stages' names along the top."""
    stages = [list(members) for _, members in itertools.groupby(lines, key=lambda ln: ln.stage)]
    end = lines[-1].step
    starts = [stage[0].step for stage in stages]
    for panel in panels:
        margin = 0.02 * max(end - starts[0], 1)
        panel.set_xlim(starts[0] - margin, end + margin)
        for start in starts[1:]:
            panel.axvline(start, color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
    if len(stages) > 1:
        names = [stage[0].stage for stage in stages]
        rows = name_rows(names, starts, end)
        for name, start, row in zip(names, starts, rows, strict=True):
            panels[0].annotate(
                name,
                (start, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, 4 + 13 * row),
                textcoords="offset points",
                color=_GREY,
            )


def name_rows(names: Sequence[str], starts: Sequence[int], end: int) -> list[int]:
    """For each stage's name the lowest row, counted from 0, where it meets none before it."""
    per_letter = max(end - starts[0], 1) / _LETTERS_ACROSS
    until: list[float] = []
    rows = []
    for name, start in zip(names, starts, strict=True):
        row = next((i for i, border in enumerate(until) if border <= start), len(until))
        until[row:] = [start + (len(name) + 1) * per_letter, *until[row + 1 :]]
        rows.append(row)
    return rows


def _draw_key(axes: Axes, shown: Sequence[tuple[str, str]]) -> None:
    """Names the curves in their own colours, low on the right where learning curves are not."""
    for index, (label, color) in enumerate(reversed(shown)):
        axes.annotate(
            label,
            (1.0, 0.0),
            xycoords="axes fraction",
            xytext=(-8, 8 + 16 * index),
            textcoords="offset points",
            ha="right",
            color=color,
            fontweight="bold",
        )
