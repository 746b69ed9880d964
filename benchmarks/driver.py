"""What the driver costs: its processor time per step, and what it gets to see of the batch.

Three drivers on one Ray, in turn, several rounds of them, each on the same batch sizes:

- Manta's, in a real run with 4 learner ranks and 4 engines (`benchmarks.driver_run`). What counts
  are all processor seconds of its process between the ends of two steps, Ray's threads, metrics,
  ledger and the garbage collector included; the value of a stage is the mean of its steps.
- The floor: as many actor calls with nothing behind them (`benchmarks.bare_calls`). Its steps are
  shorter, so that fewer of Ray's heartbeats fall into one.
- verl's single controller, on the same bytes: a batch is collected and dispatched
  (`benchmarks.verl_side`).

One more run of Manta counts the bytes that Ray hands to the driver's Python, and those that its TCP
connections receive (`benchmarks.received_bytes`): both hold no tokens, so neither grows with them.

    python -m benchmarks.driver [--rounds N] [--steps N]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TypeAlias

from benchmarks import driver_run
from benchmarks.driver_run import WARM_UP, finish
from benchmarks.manta_side import command
from benchmarks.ray_head import ray_head
from benchmarks.received_bytes import by_step, read_counts
from benchmarks.report import Figure, write
from benchmarks.sized_batches import Batch

CLAIM = "Driver processor time per step, 4 learner ranks and 4 engines, by groups and batch bytes"
SIZES = (0.4, 6.5, 104.0)
GROUPS = (32, 128)
BATCHES = [Batch(groups, mib) for groups in GROUPS for mib in SIZES]
CLAIMED = Batch(32, 104.0)
BAR, AIM = 60.0, 40.0
BAR_SEEN, AIM_SEEN = 0.01, 0.001
"""Of a batch's bytes: what may reach the driver."""
MANTA, FLOOR, VERL = "Manta", "bare Ray calls", "verl DataProto"
CPUS = 16
"""That Ray believes in: workers of three drivers mostly wait."""

Measured: TypeAlias = Mapping[Batch, Sequence[float]]
"""Milliseconds a step, one number a round."""


def one_round(
    batches: Sequence[Batch], steps: int, environment: Mapping[str, str]
) -> dict[str, dict[Batch, float]]:
    """Milliseconds of a step on each of `batches`, by driver."""
    told = [str(steps), *(f"{batch.groups}:{batch.num_bytes}" for batch in batches)]
    with tempfile.TemporaryDirectory(prefix="driver-") as folder:
        found = {MANTA: driver_run.run(Path(folder), batches, steps, environment)}
    for name, module in ((FLOOR, "bare_calls"), (VERL, "verl_side")):
        printed = finish([sys.executable, "-m", f"benchmarks.{module}", *told], environment)
        times: list[list[float]] = json.loads(printed.splitlines()[-1])
        found[name] = dict(zip(batches, times, strict=True))
    return {name: {b: fmean(found[name][b]) for b in batches} for name in found}


def bytes_seen(
    batches: Sequence[Batch], steps: int, environment: Mapping[str, str]
) -> dict[Batch, list[tuple[int, int]]]:
    """Bytes that the driver was handed over, and that its process received, in each step."""
    with tempfile.TemporaryDirectory(prefix="driver-") as temporary:
        folder = Path(temporary)
        run_file, tally = folder / "run.yaml", folder / "tally"
        driver_run.write_run_file(run_file, batches, steps)
        counting = [sys.executable, "-m", "benchmarks.received_bytes", str(tally)]
        finish([*counting, *command(run_file)[3:]], environment)
        ends = step_ends(folder / driver_run.NAME / "timeline.json")
        found = by_step(read_counts(tally), [0.0, *ends])
    each = WARM_UP + steps
    return {batch: found[i * each : (i + 1) * each][WARM_UP:] for i, batch in enumerate(batches)}


def step_ends(timeline: Path) -> list[float]:
    """When each step's publish ended, in epoch seconds."""
    lines = timeline.read_text(encoding="utf-8").splitlines()[1:]
    events = [json.loads(line.rstrip(",")) for line in lines]
    return [(e["ts"] + e["dur"]) / 1e6 for e in events if (e["name"], e["ph"]) == ("publish", "X")]


def figures(
    found: Mapping[str, Measured], seen: Mapping[Batch, Sequence[tuple[int, int]]]
) -> list[Figure]:
    made = []
    for batch in found[MANTA]:
        bar, aim = (BAR, AIM) if batch == CLAIMED else (None, None)
        ours = found[MANTA][batch]
        made += [
            Figure(
                f"{batch.name}: {name}",
                median(times[batch]),
                "ms/step",
                bar if name == MANTA else None,
                aim if name == MANTA else None,
                "lower",
                times[batch],
            )
            for name, times in found.items()
        ]
        for name in (FLOOR, VERL):
            made.append(_ratio(f"{batch.name}: {name} / {MANTA}", found[name][batch], ours))
    for groups in GROUPS:
        made += _of_groups(groups, found[MANTA])
    return made + _bytes(seen)


def _ratio(name: str, over: Sequence[float], under: Sequence[float]) -> Figure:
    pairs = list(zip(over, under, strict=True))
    return Figure(name, median(over) / median(under), "x", None, None, "higher", pairs)


def _of_groups(groups: int, ours: Measured) -> list[Figure]:
    """What a group costs, and what its bytes do to that."""
    small, large = Batch(groups, SIZES[0]), Batch(groups, SIZES[-1])
    each = [ms / groups for ms in ours[large]]
    name = f"{groups} groups: {MANTA}"
    grown = list(zip(ours[large], ours[small], strict=True))
    return [
        Figure(
            f"{large.name}: {MANTA}, of each group", median(each), "ms", None, None, "lower", each
        ),
        Figure(
            f"{name}, {large.num_bytes / small.num_bytes:.0f} x the bytes",
            median(ours[large]) / median(ours[small]),
            "x",
            None,
            None,
            "lower",
            grown,
        ),
    ]


def _bytes(seen: Mapping[Batch, Sequence[tuple[int, int]]]) -> list[Figure]:
    made = []
    for batch, steps in seen.items():
        handed, received = ([float(step[i]) for step in steps] for i in (0, 1))
        is_claimed = batch.mib == SIZES[-1]
        bar, aim = (BAR_SEEN, AIM_SEEN) if is_claimed else (None, None)
        of_all = median(received) / batch.num_bytes
        made += [
            _kib(f"{batch.name}: handed to the driver's Python", handed),
            _kib(f"{batch.name}: received by the driver's process", received),
            Figure(
                f"{batch.name}: received, of the batch", of_all, "", bar, aim, "lower", received
            ),
        ]
    return made


def _kib(name: str, found: Sequence[float]) -> Figure:
    kib = [count / 1024 for count in found]
    return Figure(name, median(kib), "KiB/step", None, None, "lower", kib)


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of each batch size in a round")
    arguments = parser.parse_args()
    rounds = []
    with ray_head(CPUS) as environment:
        for number in range(arguments.rounds):
            batches = BATCHES[:: -1 if number % 2 else 1]
            rounds.append(one_round(batches, arguments.steps, environment))
            print(f"round {number + 1}: {rounds[-1]}", flush=True)
        seen = bytes_seen(BATCHES, 4, environment)
    found = {
        name: {batch: [r[name][batch] for r in rounds] for batch in BATCHES} for name in rounds[0]
    }
    cores = len(os.sched_getaffinity(0))
    write(
        "driver",
        CLAIM,
        figures(found, seen),
        ["ray", "torch", "numpy", "verl", "tensordict"],
        cores,
    )


if __name__ == "__main__":
    main()
