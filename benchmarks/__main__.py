"""Every figure of `benchmarks/results` against its bar; with `--run`, after measuring them anew.

python -m benchmarks [--run]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.report import RESULTS, Figure, table

HERE = Path(__file__).parent
WRITES = re.compile(r'^ +write\(\s*"', re.MULTILINE)


def names() -> list[str]:
    """The benchmarks: the files here that write a result."""
    return sorted(
        path.stem for path in HERE.glob("*.py") if WRITES.search(path.read_text(encoding="utf-8"))
    )


def run_all() -> list[str]:
    """Runs each benchmark in a process of its own; the names of those that failed."""
    failed = []
    for name in names():
        print(f"\n=== {name}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent, check=False
        )
        if done.returncode != 0:
            failed.append(name)
    return failed


def show(folder: Path, console: Console) -> bool:
    """Prints the figures of every result file in `folder`; whether all bars hold.

    Raises ValueError where there is none.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"no results in {folder}: measure them with `python -m benchmarks --run`")
    all_hold = True
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        figures = [Figure(**figure) for figure in record["figures"]]
        console.print(table(f"{record['benchmark']}: {record['claim']}", figures))
        hardware = record["hardware"]
        console.print(
            f"{hardware['cpu']}, {hardware['cores_used']} of {hardware['cores']} cores, load "
            f"{hardware['load_average_1m']}; {record['date']}, commit {record['commit'][:12]}\n"
        )
        all_hold &= all(figure.holds() is not False for figure in figures)
    return all_hold


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--run", action="store_true", help="run every benchmark first")
    failed = run_all() if parser.parse_args().run else []
    all_hold = show(RESULTS, Console())
    for name in failed:
        print(f"benchmark {name} failed; what is shown of it is older")
    return 0 if all_hold and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
