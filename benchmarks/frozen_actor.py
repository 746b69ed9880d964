"""A worker that froze: how long after its deadline a run notices, names it, and is rid of it.

For each role a real run of a small model (all roles on this machine, real engine, real Ray) trains
until it has made steps; then one process of the role is stopped with SIGSTOP, which no process can
see coming. The deadline is `health.frozen_after_seconds` after its last sign of life. What is
measured is when `worker frozen` stands in events.jsonl, and when the process is gone.

python -m benchmarks.frozen_actor [ROLE ...]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.ray_head import ray_head
from benchmarks.report import Figure, write
from manta.actors.cores import available_cores
from manta.actors.processes import Known, figures
from manta.orchestrator import status
from manta.orchestrator.health import WorkerReport

FROZEN_AFTER = 3.0
EVERY = 0.5
CPUS = 8
BAR = 5.0
_START_SECONDS = 240.0
_NOTICE_SECONDS = 60.0
_STEPS = 3
_ROLES = (
    "rollout",
    "environment",
    "reward",
    "reference",
    "router",
    "mailbox",
    "weight_store",
    "learner",
    "controller",
)

RUN = f"""
run: {{name: frozen, seed: 0}}
model:
  build: {{layers: 2, width: 32, heads: 2, mlp_width: 64}}
  tokenizer: "char:0123456789+="
  context: 16
env: {{name: arithmetic, digits: 1, eval_size: 20}}
reward: {{formula: correct, components: {{correct: exact}}}}
stages:
  - name: rl
    algorithm: {{name: grpo, samples_per_prompt: 4, kl: {{coef: 0.001}}}}
    steps: 100000
    prompts_per_step: 8
    learning_rate: 1e-4
rollout: {{max_new_tokens: 4, workers: 2}}
environment: {{workers: 2}}
health: {{every_seconds: {EVERY:g}, frozen_after_seconds: {FROZEN_AFTER:g}}}
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Noticed:
    """Seconds from the deadline to the verdict, from SIGSTOP to the event in the file, and from
    the event to the end of the process."""

    overdue: float
    after_stop: float
    gone_after: float


def main() -> int:
    roles = sys.argv[1:] or _ROLES
    with ray_head(CPUS) as environment:
        found = {role: measure(role, environment) for role in roles}
    if roles != _ROLES:
        print(found)
        return 0
    write("frozen_actor", CLAIM, list(_figures(found)), ["ray", "torch"], available_cores())
    return 0 if all(f.holds() is not False for f in _figures(found)) else 1


CLAIM = (
    f"a worker whose process stands still is named and ended soon after its deadline "
    f"({FROZEN_AFTER:g} s here)"
)


def measure(role: str, environment: Mapping[str, str]) -> Noticed:
    """Raises TimeoutError where the run does not start, or notices nothing."""
    with tempfile.TemporaryDirectory() as folder, _running(Path(folder), environment) as run_dir:
        worker = _until(_START_SECONDS, f"a {role} at work", lambda: _at_work(run_dir, role))
        assert worker.identity is not None
        process = worker.identity.process
        os.kill(process.pid, signal.SIGSTOP)
        stopped = time.time()
        fields = _until(_NOTICE_SECONDS, f"the event of {role}", lambda: _event(run_dir, process))
        noticed = time.time()
        _until(_NOTICE_SECONDS, f"the end of {role}", lambda: _is_gone(process))
        overdue = fields["overdue_seconds"]
        assert isinstance(overdue, float)
        return Noticed(overdue, noticed - stopped, time.time() - noticed)


@contextmanager
def _running(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    code = "import sys; from manta.orchestrator.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", str(folder / "run.yaml"), f"run.dir={folder}"]
    with (folder / "log").open("w", encoding="utf-8") as log:
        driver = subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log)
        try:
            yield folder / "frozen"
        except TimeoutError as error:
            raise TimeoutError(f"{error}:\n{(folder / 'log').read_text()[-3000:]}") from error
        finally:
            driver.kill()
            driver.wait()


def _at_work(run_dir: Path, role: str) -> WorkerReport | None:
    """A worker of `role`, once steps are made and all are known."""
    if not (run_dir / "status.json").exists():
        return None
    found = status.read(run_dir / "status.json")
    if found.step < _STEPS:
        return None
    alive = [each for each in found.workers if each.role == role and each.state == "alive"]
    return alive[-1] if alive else None


def _event(run_dir: Path, process: Known) -> Mapping[str, object] | None:
    for line in (run_dir / "events.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        event = json.loads(line)
        if event["name"] == "worker frozen" and event["fields"]["pid"] == process.pid:
            fields: Mapping[str, object] = event["fields"]
            return fields
    return None


def _is_gone(process: Known) -> bool | None:
    return True if figures(process) is None else None


def _until(seconds: float, what: str, look: Callable[[], T | None]) -> T:
    end = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)
    return found


def _figures(found: Mapping[str, Noticed]) -> Iterator[Figure]:
    for role, noticed in found.items():
        yield _seconds(f"{role}: from the deadline to the verdict", noticed.overdue, BAR)
    worst = max(noticed.after_stop - FROZEN_AFTER for noticed in found.values())
    yield _seconds("worst: from SIGSTOP to the event, less the deadline", worst, BAR)
    worst = max(noticed.gone_after for noticed in found.values())
    yield _seconds("worst: from the event to the end of the process", worst, BAR)


def _seconds(name: str, value: float, bar: float) -> Figure:
    return Figure(name, value, "s", bar=bar, aim=None, better="lower", samples=[value])


if __name__ == "__main__":
    sys.exit(main())
