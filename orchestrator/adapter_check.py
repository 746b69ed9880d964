"""What a run file with `model.lora` must say there and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from manta.actors.backends.settings import ADAPTING, BACKEND_NAMES
from manta.actors.models.spec import LoraSpec
from manta.actors.transports.settings import DIRECT
from manta.orchestrator.config import RunFile
from manta.orchestrator.strict import nearest

_KEY = "model.lora"
_BUILT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Matrices of the models that are built on the spot."""
_SERVING = ("vllm", "embedded")
_MOST = 512
"""The largest rank for which vLLM has room."""


def adapter_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    lora, rollout, learner = run_file.model.lora, run_file.rollout, run_file.learner
    if lora is None:
        return
    if not 1 <= lora.rank <= _MOST:
        yield f"{_KEY}.rank: is {lora.rank}, must be at least 1 and at most {_MOST}"
    if lora.alpha <= 0:
        yield f"{_KEY}.alpha: is {lora.alpha:g}, must be above 0"
    yield from _targets(lora, run_file.model.build is not None)
    if run_file.needs_rollout and rollout.engine not in _SERVING:
        yield (
            f"{_KEY}: rollout.engine {rollout.engine} serves no adapter: set rollout.engine: "
            f"{' or '.join(_SERVING)}, or remove {_KEY}"
        )
    if rollout.placement == "colocated":
        yield (
            f"{_KEY}: with rollout.placement: colocated engines give up the model's weights when "
            "they sleep, and an adapter does not bring them back: set rollout.placement: "
            f"disaggregated, or remove {_KEY}"
        )
    trains_all = learner.backend in BACKEND_NAMES and learner.backend not in ADAPTING
    if run_file.needs_learner and trains_all:
        yield (
            f"{_KEY}: learner.backend {learner.backend} trains and publishes whole weights: choose "
            f"{' or '.join(ADAPTING)}, or remove {_KEY}"
        )
    if run_file.publish.transport in DIRECT:
        yield (
            f"publish.transport: is {run_file.publish.transport}, which brings whole weights, and "
            f"{_KEY} is set: choose object_store, which an adapter hardly loads"
        )


def _targets(lora: LoraSpec, is_built: bool) -> Iterator[str]:
    """A model in a folder or on a hub is looked at when it is loaded."""
    if not lora.targets:
        yield f"{_KEY}.targets: there are none, name the matrices that learn, such as q_proj"
    for index, target in enumerate(lora.targets):
        if is_built and target not in _BUILT:
            yield (
                f"{_KEY}.targets[{index}]: the model has no matrix called '{target}'"
                f"{nearest(target, _BUILT)}"
            )
