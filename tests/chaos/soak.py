"""Many schedules, one after the other: `python -m tests.chaos.soak --schedules 200`.

Prints a line for each, and at the end what was done, and how many kept every promise. Schedules are
numbered by their seeds, so that one that failed can be run again: `--first SEED --schedules 1`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.chaos.faults import DRIVER, WORKERS, Hit, schedule
from tests.chaos.tally import Tally
from tests.chaos.town import town
from tests.chaos.trial import TrialFailed, check, run_trial
from tests.e2e import runs

SIMULATED = (
    "rollout.simulated.length_median=2",
    "rollout.simulated.tokens_per_second=40",
    "publish.probe_tolerance=1000",
)


def main() -> int:
    options = _options()
    roles = options.roles.split(",")
    kinds = options.kinds.split(",")
    overrides = [f"rollout.engine={options.engine}", *options.override]
    if options.engine == "simulated":
        overrides += SIMULATED
    tally, undisturbed = Tally(), None
    with town() as nodes, options.results.open("a") as results:
        if options.deterministic:
            overrides.append("run.deterministic=true")
            undisturbed = run_trial(nodes, options.run_file, _folder("undisturbed"), (), *overrides)
        for seed in range(options.first, options.first + options.schedules):
            faults = schedule(seed, options.faults, runs.last_step(options.run_file), roles, kinds)
            folder = _folder(seed)
            started, problem = time.monotonic(), ""
            hits: tuple[Hit, ...] = ()
            try:
                trial = run_trial(nodes, options.run_file, folder, faults, *overrides)
                hits = trial.hits
                check(trial, nodes, undisturbed)
            except AssertionError as error:
                problem = str(error) or traceback.format_exc(limit=-2)
                hits = error.hits if isinstance(error, TrialFailed) else hits
            tally.note(hits, problem)
            seconds = time.monotonic() - started
            line = {
                "seed": seed,
                "engine": options.engine,
                "faults": [str(fault) for fault in faults],
                "hits": [{"what": str(hit), "is_delivered": hit.is_delivered} for hit in hits],
                "seconds": round(seconds, 1),
                "problem": problem,
            }
            results.write(json.dumps(line) + "\n")
            results.flush()
            print(
                f"{seed}: {'FAILED ' + str(folder) if problem else 'held'} {seconds:.0f} s "
                f"({'; '.join(map(str, hits))})",
                flush=True,
            )
    print("\n".join(tally.lines()))
    return 1 if tally.failed else 0


def _folder(name: object) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"chaos-{name}-"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--faults", type=int, default=2, help="in each schedule")
    parser.add_argument("--engine", default="simulated", help="simulated, embedded or vllm")
    parser.add_argument("--roles", default=",".join([*WORKERS, DRIVER]))
    parser.add_argument("--kinds", default="kill,freeze,stall,lose node")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="each must end with the weights of a run without faults, to the bit",
    )
    parser.add_argument("--run-file", type=Path, default=runs.TINY)
    parser.add_argument("--results", type=Path, default=Path("chaos.jsonl"))
    parser.add_argument("override", nargs="*", help="KEY=VALUE of the run file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
