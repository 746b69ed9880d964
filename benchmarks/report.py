"""What a benchmark leaves behind: a table on the terminal and `benchmarks/results/NAME.json`.

Owns the file format and what is noted about the machine. Measures nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number and the bar it is held to.

    `bar` and `aim` are None for a number that only informs. `samples` are the raw measurements
    behind `value`, one entry per repetition; where two sides are compared, each entry holds both,
    in the order in which they ran. A repetition that did not get to what is measured has None, and
    `value` is None where one of them did not.
    """

    name: str
    value: float | None
    unit: str
    bar: float | None
    aim: float | None
    better: Literal["higher", "lower"]
    samples: Sequence[float | Sequence[float] | None]

    def holds(self) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        if self.value is None:
            return False
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar


def write(
    benchmark: str,
    claim: str,
    figures: Sequence[Figure],
    packages: Sequence[str],
    cores: int,
    folder: Path = RESULTS,
) -> Path:
    """Prints `figures` and writes them with the machine, the versions of `packages`, the commit and
    the date. `cores` is how many the benchmark used. Returns the file."""
    record = {
        "benchmark": benchmark,
        "claim": claim,
        "figures": [asdict(figure) for figure in figures],
        "hardware": hardware(cores),
        "versions": versions(packages),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}.json"
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    Console().print(table(claim, figures))
    return path


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Figures against their bars."""
    drawn = Table(title=title)
    for column in ("figure", "value", "unit", "bar", "aim", "holds"):
        drawn.add_column(column, justify="left" if column in ("figure", "unit") else "right")
    for figure in figures:
        holds = figure.holds()
        sign = ">=" if figure.better == "higher" else "<="
        drawn.add_row(
            figure.name,
            _said(figure.value),
            figure.unit,
            "" if figure.bar is None else f"{sign} {figure.bar:g}",
            "" if figure.aim is None else f"{figure.aim:g}",
            "" if holds is None else ("yes" if holds else "NO"),
        )
    return drawn


def _said(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def hardware(cores: int) -> dict[str, str | int | float]:
    """Processor, its cores, how many were used, and how busy the machine was at the end."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "cores_used": cores,
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "load_average_1m": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python's version and those of the installed `packages`."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The checked-out commit, with `+changes` where the working tree differs from it."""
    head = _git("rev-parse", "HEAD")
    changes = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"
    )
    return f"{head}+changes" if changes else head


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=RESULTS.parent.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
