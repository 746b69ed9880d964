"""How weights travel between GPUs, told before a run starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.role_needs import role_needs
from manta.orchestrator.transport_check import transport_problems
from tests.unit.orchestrator.tiny_run import load

ON_GPUS = ("rollout.engine=vllm", "rollout.devices=1")


def problems(folder: Path, *overrides: str) -> list[str]:
    return list(transport_problems(load(folder, *overrides)))


def test_nccl_between_gpus_has_no_problems_and_asks_for_the_learner_s(tmp_path: Path) -> None:
    run_file = load(tmp_path, *ON_GPUS, "publish.transport=nccl")
    assert list(transport_problems(run_file)) == []
    gpus = {need.role: need.gpus for need in role_needs(run_file)}
    assert (gpus["learner"], gpus["rollout"]) == (1, 1)
    without = {need.role: need.gpus for need in role_needs(load(tmp_path, *ON_GPUS))}
    assert without["learner"] == 0


@pytest.mark.parametrize("name", ["nccl", "ipc"])
def test_without_gpus_it_is_refused(tmp_path: Path, name: str) -> None:
    [told] = problems(tmp_path, "rollout.engine=vllm", f"publish.transport={name}")
    assert told == (
        f"publish.transport: is {name}, which moves weights from GPU to GPU, and rollout.devices "
        "is 0: set how many GPUs a rollout worker has, or choose object_store"
    )


def test_ipc_is_for_learner_and_engines_on_one_gpu(tmp_path: Path) -> None:
    [told] = problems(tmp_path, *ON_GPUS, "publish.transport=ipc")
    assert told == (
        "publish.transport: is ipc, which lends the memory of a GPU to an engine on the same one, "
        "and here learner and engines each have GPUs of their own: choose nccl or object_store, "
        "or set rollout.placement: colocated"
    )


def test_colocated_weights_go_by_ipc_and_not_by_nccl(tmp_path: Path) -> None:
    together = (*ON_GPUS, "rollout.placement=colocated")
    run_file = load(tmp_path, *together, "publish.transport=ipc")
    assert list(transport_problems(run_file)) == []
    gpus = {need.role: need.gpus for need in role_needs(run_file)}
    assert (gpus["learner"], gpus["rollout"]) == (1, 0), "one GPU, counted once"
    [told] = problems(tmp_path, *together, "publish.transport=nccl")
    assert told == (
        "publish.transport: is nccl, which cannot join two processes on one GPU, and with "
        "rollout.placement: colocated an engine is on a learner rank's: choose ipc or "
        "object_store, or set rollout.placement: disaggregated"
    )
