"""What a learner rank would need under each backend, on several numbers of GPUs.

For `manta check RUN.yaml --gpus 8,64,512`. Owns which backends are compared; the formulas are
`manta.orchestrator.memory`'s, and hold for one rank a GPU. They count what Manta's backends hold,
which is more than DeepSpeed's own estimators (`estimate_zero2_model_states_mem_needs` and zero3's)
say of mixed precision:

- DeepSpeed's model has weights of 2 bytes, gradients of 2 bytes that are shared out as they are
  made (stage 3's estimator leaves them out), and 16 bytes a parameter shared out (masters, the
  gradient stepped by, two moments). Here weights and gradients have 4 bytes (the backend
  `deepspeed` trains float32 models), and gradients are whole on every rank until an update's last
  micro-batch (`manta.actors.backends.deepspeed` says why). In bytes a parameter, on W GPUs: 2 or,
  at stage 3, 2/W more of weights; 4 - 2/W or, at stage 3 and with offload, 4 more of gradients.
- Of what stage 3 makes whole for a while DeepSpeed counts the largest weight, 4 bytes a number;
  here it is embeddings, head and two layers, with their gradient.
- Activations, logits and the buffer in which gradients travel count here, and not there.
- On the host DeepSpeed counts half as much again for its buffers, and the model that every process
  loads at the start. Here it is what a rank holds there, and rank 0's copies to publish and save.

Needs are those of steps. Not counted is the start, at which every rank builds the whole model, and
fsdp its float32 masters, where it computes, before it keeps its part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from manta.actors.backends.settings import DeepSpeedSettings, FsdpSettings, LearnerSettings
from manta.orchestrator.config import RunFile
from manta.orchestrator.memory import learner_parts
from manta.orchestrator.model_sizes import ModelSizes

Dtype: TypeAlias = Literal["float32", "bfloat16"]

_OFFLOADS: tuple[Literal["none", "cpu"], ...] = ("none", "cpu")
_STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one rank: on its GPU, and in its host's memory (rank 0's, which has the most)."""

    device: int
    host: int


@dataclass(frozen=True, slots=True)
class Row:
    """A backend's needs, one for each number of GPUs."""

    backend: str
    needs: tuple[Need, ...]


def memory_table(run_file: RunFile, sizes: ModelSizes, gpus: Sequence[int]) -> tuple[Row, ...]:
    """A row for each backend that can train the run's model as `run_file` says; one rank a GPU."""
    rows = []
    for name, learner, dtype in _backends(run_file):
        model = replace(run_file.model, dtype=dtype)
        needs = [
            _need(replace(run_file, model=model, learner=replace(learner, workers=count)), sizes)
            for count in gpus
        ]
        rows.append(Row(name, tuple(needs)))
    return tuple(rows)


def _need(run_file: RunFile, sizes: ModelSizes) -> Need:
    parts = learner_parts(run_file, sizes)
    return Need(
        sum(part.bytes for part in parts if not part.on_host),
        sum(part.bytes for part in parts if part.on_host),
    )


def _backends(run_file: RunFile) -> Iterator[tuple[str, LearnerSettings, Dtype]]:
    """Names of backends, the learner's settings with each, and the dtype that it trains."""
    own, dtype = run_file.learner, run_file.model.dtype
    yield "plain", replace(own, backend="plain"), dtype
    if any(_whole_alone(run_file)):
        return
    for again in (False, True):
        for offload in _OFFLOADS:
            fsdp = FsdpSettings(checkpoint_activations=again, offload=offload)
            name = _name("fsdp", "activations again" if again else "", offload)
            yield name, replace(own, backend="fsdp", fsdp=fsdp), dtype
    for stage in _STAGES:
        for offload in _OFFLOADS:
            zero = DeepSpeedSettings(stage, offload)
            name = _name(f"ZeRO {stage}", "" if dtype == "float32" else "float32", offload)
            yield name, replace(own, backend="deepspeed", deepspeed=zero), "float32"


def _whole_alone(run_file: RunFile) -> Iterator[bool]:
    """What only a backend does whose ranks hold everything: adapters, residents, Muon."""
    yield run_file.model.lora is not None
    yield run_file.learner.optimizer == "muon"
    for stage in run_file.stages:
        algorithm = stage.algorithm
        if stage.kind == "train" and algorithm is not None:
            yield algorithm.critic is not None or algorithm.reward_model is not None
            yield algorithm.implicit_reward is not None


def _name(backend: str, option: str, offload: str) -> str:
    return ", ".join(each for each in (backend, option, "offload" * (offload == "cpu")) if each)
