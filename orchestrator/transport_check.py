"""How weights are to travel, checked before anything starts.

Owns every rule about `publish.transport` and `publish.path`.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.actors.transports.settings import DIRECT
from manta.orchestrator import survey
from manta.orchestrator.config import RunFile

_KEY = "publish.transport"
_OTHERWISE = "or choose object_store"


def transport_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    publish = run_file.publish
    if publish.transport in DIRECT:
        yield from _direct(run_file)
    if publish.transport != "disk":
        if publish.path is not None:
            yield (
                f"publish.path: has no effect with transport {publish.transport}: remove it, or "
                "set publish.transport: disk"
            )
        return
    if publish.path is None:
        yield (
            "publish.path: transport disk needs one: a folder that the driver and every rollout "
            "worker reach, or a URI such as s3://bucket/folder"
        )
    elif run_file.needs_learner:
        yield from survey.unreachable("publish.path", publish.path)


def _direct(run_file: RunFile) -> Iterator[str]:
    """Between processes of vLLM on GPUs and the learner's own: who stands where?"""
    name, rollout = run_file.publish.transport, run_file.rollout
    if rollout.engine != "vllm":
        yield (
            f"{_KEY}: is {name}, which is vLLM's own, and rollout.engine is {rollout.engine}: set "
            f"rollout.engine: vllm, {_OTHERWISE}"
        )
    elif rollout.devices == 0:
        yield (
            f"{_KEY}: is {name}, which moves weights from GPU to GPU, and rollout.devices is 0: "
            f"set how many GPUs a rollout worker has, {_OTHERWISE}"
        )
    elif name == "ipc" and rollout.placement != "colocated":
        yield (
            f"{_KEY}: is ipc, which lends the memory of a GPU to an engine on the same one, and "
            "here learner and engines each have GPUs of their own: choose nccl or object_store, or "
            "set rollout.placement: colocated"
        )
    elif name == "nccl" and rollout.placement == "colocated":
        yield (
            f"{_KEY}: is nccl, which cannot join two processes on one GPU, and with "
            "rollout.placement: colocated an engine is on a learner rank's: choose ipc or "
            "object_store, or set rollout.placement: disaggregated"
        )
