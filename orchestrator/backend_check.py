"""What a run file must say where `learner.backend` is `fsdp` or `deepspeed`, or is neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from manta.actors.backends.deepspeed_config import DECIDED, OPEN, OPEN_ZERO
from manta.actors.backends.settings import (
    BACKEND_NAMES,
    WHOLE_MATRICES,
    DeepSpeedSettings,
    FsdpSettings,
    LearnerSettings,
)
from manta.envs.records import Json
from manta.orchestrator.config import RunFile
from manta.orchestrator.strict import nearest

DEEPSPEED = "0.19"
"""The DeepSpeed that the backend is written for: it reads some of its insides."""


def installed_deepspeed() -> str | None:
    """The version of the installed DeepSpeed, or None."""
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of `learner` that is for one backend only."""

    backend: str
    found: object
    default: object


def backend_problems(run_file: RunFile, deepspeed: str | None) -> Iterator[str]:
    """One line each, starting with the key; `deepspeed` is the version that is installed."""
    learner = run_file.learner
    for block in (
        _Block("fsdp", learner.fsdp, FsdpSettings()),
        _Block("deepspeed", learner.deepspeed, DeepSpeedSettings()),
    ):
        if learner.backend != block.backend and block.found != block.default:
            yield (
                f"learner.{block.backend}: has no effect with learner.backend {learner.backend}: "
                f"set learner.backend: {block.backend}, or remove the block"
            )
    if learner.backend == "deepspeed" and learner.precision == "bf16":
        yield (
            "learner.precision: is bf16, and learner.backend deepspeed computes in float32: remove "
            "it, or choose backend plain or fsdp"
        )
    if learner.optimizer == "muon" and learner.backend in set(BACKEND_NAMES) - set(WHOLE_MATRICES):
        yield (
            "learner.optimizer: muon makes whole matrices orthogonal, and learner.backend "
            f"{learner.backend} shares them out among the ranks: choose backend "
            f"{' or '.join(WHOLE_MATRICES)}, or optimizer adamw"
        )
    if learner.optimizer == "muon" and learner.momentum:
        yield (
            f"learner.momentum: is {learner.momentum:g}, which is for optimizer sgd; muon has its "
            "own: remove it"
        )
    if learner.backend == "fsdp" and learner.fsdp.offload == "cpu" and not learner.devices:
        yield _no_gpu("learner.fsdp.offload")
    if learner.backend == "deepspeed":
        yield from _deepspeed(learner, run_file.model.dtype, deepspeed)
        if learner.deepspeed.offload_optimizer == "cpu" and not learner.devices:
            yield _no_gpu("learner.deepspeed.offload_optimizer")


def _no_gpu(key: str) -> str:
    return (
        f"{key}: is cpu, which moves state from a GPU to host memory, and this run's learner "
        "computes on CPUs: set it to none, or learner.devices to 1"
    )


def _deepspeed(learner: LearnerSettings, dtype: str, installed: str | None) -> Iterator[str]:
    if installed is None:
        yield (
            "learner.backend: is deepspeed, which is not installed: install the extra [deepspeed] "
            "of manta-rl, or choose fsdp, which shares out as much"
        )
    elif not installed.startswith(f"{DEEPSPEED}."):
        yield (
            f"learner.backend: is deepspeed, and version {installed} is installed: install "
            f"{DEEPSPEED}, which the backend is written for"
        )
    if dtype != "float32":
        yield (
            f"learner.backend: is deepspeed, and model.dtype is {dtype}: gradients of "
            "micro-batches would add up in it: choose fsdp, which adds them up in float32"
        )
    yield from _config(learner.deepspeed)


def _config(settings: DeepSpeedSettings) -> Iterator[str]:
    for key, value in settings.config.items():
        where = f"learner.deepspeed.config.{key}"
        if key in DECIDED:
            yield _contradiction(where, DECIDED[key])
        elif key not in OPEN:
            yield f"{where}: cannot be set from a run file{nearest(key, OPEN)}"
        elif key == "zero_optimization":
            yield from _zero(where, value)


def _zero(where: str, value: Json) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: must be a mapping of DeepSpeed's keys, such as {OPEN_ZERO[0]}"
        return
    for key in value:
        decides = DECIDED.get(f"zero_optimization.{key}")
        if decides is not None:
            yield _contradiction(f"{where}.{key}", decides)
        elif key not in OPEN_ZERO:
            yield f"{where}.{key}: cannot be set from a run file{nearest(key, OPEN_ZERO)}"


def _contradiction(where: str, decides: str) -> str:
    return f"{where}: is decided by {decides}: remove it here, and set it there"
