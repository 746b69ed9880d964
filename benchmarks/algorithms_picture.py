"""The picture of `benchmarks.algorithms`: where each preset came from and got to, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

Points = Sequence[tuple[float, float, float, float, float]]
"""By seed: accuracy before, accuracy after, pass@8, entropy, seconds."""


def draw(found: Mapping[str, Points], path: Path) -> None:
    """One line a preset, best mean accuracy on top, as a PNG at `path`."""
    from matplotlib.figure import Figure

    names = sorted(found, key=lambda name: mean(after for _, after, *_ in found[name]))
    figure = Figure(figsize=(11, 1.2 + 0.27 * len(names)), layout="constrained")
    accuracy, solved, entropy, time = figure.subplots(1, 4, sharey=True, width_ratios=[3, 1, 1, 1])
    for row, name in enumerate(names):
        for before, after, pass_at_8, nats, seconds in found[name]:
            accuracy.plot([before, after], [row, row], color="0.8", zorder=1)
            accuracy.plot(before, row, "o", color="0.6", markersize=4)
            accuracy.plot(after, row, "o", color="tab:blue", markersize=5)
            solved.plot(pass_at_8, row, "o", color="tab:green", markersize=4)
            entropy.plot(nats, row, "o", color="tab:orange", markersize=4)
            time.plot(seconds, row, "o", color="tab:purple", markersize=4)
    accuracy.set_yticks(range(len(names)), names)
    accuracy.set_xlabel("held-out accuracy: after the warm start (grey), after RL (blue)")
    solved.set_xlabel("held-out pass@8")
    entropy.set_xlabel("entropy, nats a token")
    time.set_xlabel("seconds")
    accuracy.set_ylim(-0.7, len(names) - 0.3)
    for axes in (accuracy, solved, entropy, time):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
