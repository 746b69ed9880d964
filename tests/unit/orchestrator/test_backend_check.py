"""What `learner.backend` asks of the rest of a run file."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.actors.backends.settings import DeepSpeedSettings, LearnerSettings
from manta.orchestrator.backend_check import backend_problems
from manta.orchestrator.colocation_check import colocation_problems
from manta.orchestrator.learner_share import LearnerShare, learner_share
from tests.unit.orchestrator.tiny_run import load

HERE = "0.19.8"
ZERO = "learner.deepspeed.config={zero_optimization: {%s}}"
REFUSED = [
    ("learner.fsdp.checkpoint_activations=true",
     "learner.fsdp: has no effect with learner.backend plain: set learner.backend: fsdp, or"),
    ("learner.backend=fsdp learner.deepspeed.stage=3",
     "learner.deepspeed: has no effect with learner.backend fsdp: set learner.backend: deepspeed"),
    ("learner.backend=deepspeed learner.precision=bf16",
     "learner.precision: is bf16, and learner.backend deepspeed computes in float32: remove it"),
    ("learner.backend=fsdp learner.fsdp.offload=cpu",
     "learner.fsdp.offload: is cpu, which moves state from a GPU to host memory, and this run's"),
    ("learner.backend=deepspeed learner.deepspeed.offload_optimizer=cpu",
     "learner.deepspeed.offload_optimizer: is cpu, which moves state from a GPU"),
    ("learner.backend=deepspeed model.dtype=bfloat16",
     "learner.backend: is deepspeed, and model.dtype is bfloat16: gradients of micro-batches"),
    ("learner.backend=deepspeed|learner.deepspeed.config={optimizer: {type: Adam}}",
     "learner.deepspeed.config.optimizer: is decided by learner.optimizer: remove it here"),
    ("learner.backend=deepspeed|learner.deepspeed.config={train_micro_batch_size_per_gpu: 4}",
     "learner.deepspeed.config.train_micro_batch_size_per_gpu: is decided by learner.tokens_per_"),
    ("learner.backend=deepspeed|learner.deepspeed.config={gradient_accumulation_steps: 4}",
     "learner.deepspeed.config.gradient_accumulation_steps: is decided by learner.tokens_per_"),
    ("learner.backend=deepspeed|learner.deepspeed.config={gradient_clipping: 1.0}",
     "learner.deepspeed.config.gradient_clipping: is decided by learner.clip_norm"),
    ("learner.backend=deepspeed|learner.deepspeed.config={fp16: {enabled: true}}",
     "learner.deepspeed.config.fp16: is decided by model.dtype"),
    ("learner.backend=deepspeed|learner.deepspeed.config={step_per_print: 3}",
     "learner.deepspeed.config.step_per_print: cannot be set from a run file; did you mean"),
    ("learner.backend=deepspeed|learner.deepspeed.config={zero_optimization: 2}",
     "learner.deepspeed.config.zero_optimization: must be a mapping"),
    ("learner.backend=deepspeed|" + ZERO % "stage: 3",
     "learner.deepspeed.config.zero_optimization.stage: is decided by learner.deepspeed.stage"),
    ("learner.backend=deepspeed|" + ZERO % "overlap: true",
     "learner.deepspeed.config.zero_optimization.overlap: cannot be set from a run file; did you"),
    ("learner.backend=fsdp learner.optimizer=muon",
     "learner.optimizer: muon makes whole matrices orthogonal, and learner.backend fsdp shares"),
    ("learner.backend=deepspeed learner.optimizer=muon",
     "learner.optimizer: muon makes whole matrices orthogonal, and learner.backend deepspeed"),
    ("learner.optimizer=muon learner.momentum=0.9",
     "learner.momentum: is 0.9, which is for optimizer sgd; muon has its own: remove it"),
]  # fmt: skip


def words(overrides: str) -> list[str]:
    return overrides.split("|") if "|" in overrides else overrides.split(" ")


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_refuses_and_says_what_to_do(tmp_path: Path, overrides: str, message: str) -> None:
    [problem] = backend_problems(load(tmp_path, *words(overrides)), HERE)
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("installed", "message"),
    [(None, "which is not installed: install the extra [deepspeed]"), ("0.18.2", "version 0.18.2")],
)
def test_the_deepspeed_that_the_backend_is_written_for(
    tmp_path: Path, installed: str | None, message: str
) -> None:
    [problem] = backend_problems(load(tmp_path, "learner.backend=deepspeed"), installed)
    assert message in problem
    for backend in ("plain", "fsdp"):
        assert not list(backend_problems(load(tmp_path, f"learner.backend={backend}"), installed))


FITS = [
    "learner.backend=fsdp learner.workers=2",
    "learner.backend=fsdp learner.precision=bf16",
    "learner.backend=deepspeed learner.deepspeed.stage=0",
    "learner.backend=fsdp model.dtype=bfloat16",
    "learner.optimizer=muon learner.workers=2",
    "learner.backend=fsdp learner.fsdp.offload=cpu learner.devices=1",
    "learner.backend=deepspeed|" + ZERO % "overlap_comm: true, stage3_max_live_parameters: 1000",
]


@pytest.mark.parametrize("overrides", FITS)
def test_what_goes_together_passes(tmp_path: Path, overrides: str) -> None:
    assert not list(backend_problems(load(tmp_path, *words(overrides)), HERE))


@pytest.mark.parametrize("backend", ["fsdp", "deepspeed"])
def test_a_backend_that_cannot_leave_its_device_is_not_colocated(
    tmp_path: Path, backend: str
) -> None:
    run_file = load(tmp_path, "rollout.placement=colocated", f"learner.backend={backend}")
    [problem] = colocation_problems(run_file)
    assert problem.startswith(f"learner.backend: '{backend}' cannot leave its device to engines")


SHARES = [
    ("plain", 0, 4, LearnerShare(1, 0, 1, 1)),
    ("plain", 0, 2, LearnerShare(1, 1, 1, 1)),
    ("fsdp", 0, 2, LearnerShare(0.25, 0, 0.25, 0.25, gathers=True)),
    ("deepspeed", 0, 4, LearnerShare(1, 0, 1, 1)),
    ("deepspeed", 1, 4, LearnerShare(0.25, 1, 1, 0.25, 0.25, bucket=1000)),
    ("deepspeed", 2, 4, LearnerShare(0.25, 1, 1, 0.25, 0.25, bucket=1000)),
    ("deepspeed", 3, 4, LearnerShare(0.25, 0.25, 1, 0.25, 0.25, gathers=True, bucket=1000)),
]


@pytest.mark.parametrize(("backend", "stage", "element", "expected"), SHARES)
def test_what_each_of_four_ranks_holds(
    backend: str, stage: int, element: int, expected: LearnerShare
) -> None:
    block = DeepSpeedSettings(stage=stage)  # type: ignore[arg-type]
    settings = LearnerSettings(backend=backend, workers=4, deepspeed=block)
    assert learner_share(settings, 1000, element) == expected
