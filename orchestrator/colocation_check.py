"""What a run file with `rollout.placement: colocated` must say elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from manta.actors.backends.settings import BACKEND_NAMES, OFFLOADING
from manta.orchestrator.config import RunFile

_KEY = "rollout.placement"
_APART = "or set rollout.placement: disaggregated"


def colocation_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    if run_file.rollout.placement != "colocated":
        return
    if not (run_file.needs_learner and run_file.needs_rollout):
        missing = "trains" if run_file.needs_rollout else "samples or evaluates"
        yield f"{_KEY}: colocated shares a device in turns, and no stage {missing}: remove it"
        return
    yield from _staleness(run_file)
    yield from _engine(run_file)
    yield from _learner(run_file)


def _staleness(run_file: RunFile) -> Iterator[str]:
    for index, stage in enumerate(run_file.stages):
        staleness = run_file.max_staleness(stage)
        if stage.samples_to_train and staleness > 0:
            own = stage.max_staleness is not None
            key = f"stages[{index}].max_staleness" if own else "rollout.max_staleness"
            yield (
                f"{key}: is {staleness}, but engines that are colocated sleep while the learner "
                f"trains, so that nothing is sampled ahead: set it to 0, {_APART}"
            )


def _engine(run_file: RunFile) -> Iterator[str]:
    rollout = run_file.rollout
    if rollout.engine == "simulated":
        yield (
            f"{_KEY}: colocated has no meaning for the simulated engine, which holds no memory to "
            f"give back: choose rollout.engine embedded or vllm, {_APART}"
        )
    if rollout.engine == "vllm" and rollout.vllm.data_parallel > 1:
        yield (
            f"rollout.vllm.data_parallel: is {rollout.vllm.data_parallel}, but vLLM puts the "
            "copies behind one worker to sleep one by one only: set 1 and raise rollout.workers, "
            f"{_APART}"
        )


def _learner(run_file: RunFile) -> Iterator[str]:
    rollout, learner = run_file.rollout, run_file.learner
    wanted = rollout.sizes.min * max(1, rollout.devices)
    if learner.ranks.is_fixed and learner.ranks.min != wanted:
        engines = f"{rollout.sizes.min} workers"
        if rollout.devices > 1:
            engines += f" of {rollout.devices} devices"
        yield (
            f"rollout.workers: {engines} need {wanted} learner ranks to stand beside, "
            f"learner.workers is {learner.ranks}: make the two come out even, {_APART}"
        )
    if learner.backend in BACKEND_NAMES and learner.backend not in OFFLOADING:
        yield (
            f"learner.backend: '{learner.backend}' cannot leave its device to engines: choose "
            f"{' or '.join(OFFLOADING)}, {_APART}"
        )
