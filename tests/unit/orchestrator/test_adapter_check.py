"""A run file with `model.lora`, checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.actors.models.spec import LoraSpec
from manta.orchestrator.adapter_check import adapter_problems
from manta.orchestrator.cross_check import cross_check
from tests.unit.orchestrator.tiny_run import load

GOOD = ("rollout.engine=vllm", "model.lora={rank: 8}")


def test_an_adapter_takes_its_defaults_and_a_run_file_without_one_has_no_problems(
    tmp_path: Path,
) -> None:
    run_file = load(tmp_path, *GOOD)
    assert run_file.model.lora == LoraSpec(rank=8)
    assert list(adapter_problems(run_file)) == []
    assert list(adapter_problems(load(tmp_path))) == []
    assert list(adapter_problems(load(tmp_path, *GOOD, "rollout.engine=embedded"))) == []
    assert list(adapter_problems(load(tmp_path, *GOOD, "learner.backend=mine:Backend"))) == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.lora.rank=0", "model.lora.rank: is 0, must be at least 1 and at most 512"),
        ("model.lora.rank=513", "model.lora.rank: is 513, must be at least 1 and at most 512"),
        ("model.lora.alpha=0", "model.lora.alpha: is 0, must be above 0"),
        ("model.lora.targets=[]", "model.lora.targets: there are none, name the matrices that "
         "learn, such as q_proj"),
        ("model.lora.targets=[q_proj, vproj]", "model.lora.targets[1]: the model has no matrix "
         "called 'vproj'; did you mean 'v_proj'?"),
        ("rollout.engine=simulated", "model.lora: rollout.engine simulated serves no adapter: set "
         "rollout.engine: vllm or embedded, or remove model.lora"),
        ("rollout.placement=colocated", "model.lora: with rollout.placement: colocated engines "
         "give up the model's weights when they sleep, and an adapter does not bring them back"),
        ("publish.transport=nccl", "publish.transport: is nccl, which brings whole weights, and "
         "model.lora is set: choose object_store"),
    ],
)  # fmt: skip
def test_refuses(tmp_path: Path, override: str, told: str) -> None:
    run_file = load(tmp_path, *GOOD, override)
    found = list(adapter_problems(run_file))
    assert [problem for problem in found if problem.startswith(told)], found
    assert set(found) <= set(cross_check(run_file))
