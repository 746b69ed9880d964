"""What a run file says of numbers of workers that come and go."""

from __future__ import annotations

from collections.abc import Iterator

from manta.actors.transports.settings import DIRECT
from manta.actors.worker_range import WorkerRange
from manta.orchestrator.config import RunFile


def pool_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    rollout = run_file.rollout
    told = {
        "rollout.workers": rollout.workers,
        "environment.workers": run_file.environment.workers,
        "reward_workers.workers": run_file.reward_workers.workers,
    }
    for key, workers in told.items():
        if isinstance(workers, WorkerRange):
            yield from _range(run_file, key, workers)
        elif workers < 1:
            yield f"{key}: is {workers}, must be at least 1"
    yield from _ranks(run_file)
    if rollout.standby < 0:
        yield f"rollout.standby: is {rollout.standby}, must be at least 0"
    elif rollout.standby and (why := _stays_as_it_is(run_file)):
        yield f"rollout.standby: {why}, so nothing would stand in for long: set 0"


def _range(run_file: RunFile, key: str, workers: WorkerRange) -> Iterator[str]:
    if workers.min < 1:
        yield f"{key}.min: is {workers.min}, must be at least 1"
    elif workers.min > workers.max:
        yield (
            f"{key}.min: is {workers.min}, above max ({workers.max}): a run starts with min "
            "workers and never has more than max"
        )
    elif workers.idle_seconds <= 0:
        yield f"{key}.idle_seconds: is {workers.idle_seconds:g}, must be above 0"
    elif not workers.is_fixed:
        if run_file.run.deterministic:
            yield (
                f"{key}: is a range, but in a run with run.deterministic nothing may depend on "
                "when workers come and go: give one number"
            )
        elif key == "rollout.workers" and (why := _stays_as_it_is(run_file)):
            yield f"{key}: is a range, but {why}: give one number"


def _ranks(run_file: RunFile) -> Iterator[str]:
    ranks, key = run_file.learner.ranks, "learner.workers"
    if isinstance(run_file.learner.workers, int):
        if ranks.min < 1:
            yield f"{key}: is {ranks.min}, must be at least 1"
    elif ranks.min < 1:
        yield f"{key}.min: is {ranks.min}, must be at least 1"
    elif ranks.min > ranks.max:
        yield (
            f"{key}.min: is {ranks.min}, above max ({ranks.max}): the group has as many ranks as "
            "there is place for, never fewer than min nor more than max"
        )
    elif ranks.settle_seconds < 0:
        yield f"{key}.settle_seconds: is {ranks.settle_seconds:g}, must be at least 0"
    elif not ranks.is_fixed:
        if run_file.run.deterministic:
            yield (
                f"{key}: is a range, but in a run with run.deterministic sums must not depend on "
                "how many ranks share them: give one number"
            )
        elif why := _stays_as_it_is(run_file):
            yield f"{key}: is a range, but {why}: give one number"


def _stays_as_it_is(run_file: RunFile) -> str:
    """Why engines neither come nor go while a run goes on; empty where they do."""
    if run_file.rollout.placement == "colocated":
        return "colocated engines stay beside the learner's ranks"
    if run_file.publish.transport in DIRECT:
        return f"engines that transport {run_file.publish.transport} sends to stay as they are"
    return ""
