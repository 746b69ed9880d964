"""The weights behind a name: read from checkpoints, products and folders, and averaged.

Owns how a name becomes tensors, under the names and in the shapes of the run's own model. How names
are written is `manta.orchestrator.model_names`'s, who takes the weights is
`manta.orchestrator.adoption`'s and `manta.orchestrator.stage_reference`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manta.actors.backends.state_files import read_parameters
from manta.actors.stored_folder import StoredFolder
from manta.actors.weight_tensors import pack, refuse_mismatch
from manta.actors.weights import Weights, label
from manta.envs.records import WeightVersion
from manta.envs.tokenizer import build_tokenizer
from manta.orchestrator.build import tokenizer_name
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.model_names import (
    InitialName,
    Mixed,
    PathName,
    Single,
    SoupName,
    StageName,
    StepName,
    exact,
    named_stage,
)
from manta.orchestrator.products import Products


@dataclass(frozen=True, slots=True)
class Named:
    """`name` is as exact as can be: with the repeat that each stage in it means."""

    name: str
    weights: Weights

    @property
    def label(self) -> str:
        """Names the content."""
        return label(self.name, self.weights.sha256)


class NamedWeights:
    """Reads whole models into the memory of this process: call it from a thread."""

    def __init__(self, run_file: RunFile, checkpoints: Checkpoints, products: Products) -> None:
        self._run_file, self._checkpoints, self._products = run_file, checkpoints, products

    def named(self, name: Mixed, reader: StageConfig, version: WeightVersion) -> Named:
        """What `name` means where `reader` says it, as weights called `version`.

        Raises ValueError where it is not there (yet), damaged, or another model's.
        """
        weights = pack(self.tensors(name, reader), version)
        return Named(self._exact(name, reader), weights)

    def tensors(
        self, name: Mixed, reader: StageConfig, shares: Sequence[float] = ()
    ) -> dict[str, Tensor]:
        """The parameters alone; `shares` are those of a soup's parts, equal ones by default."""
        if not isinstance(name, SoupName):
            return self._read(name, reader)
        parts = (self._read(part, reader) for part in name.parts)
        return soup(parts, [str(part) for part in name.parts], shares)

    def _read(self, name: Single, reader: StageConfig) -> dict[str, Tensor]:
        if isinstance(name, StageName):
            return self._of_stage(named_stage(self._run_file, name, reader))
        if isinstance(name, StepName):
            return self._of_step(name)
        return self._of_folder(name.path if isinstance(name, PathName) else None)

    def _exact(self, name: Mixed, reader: StageConfig) -> str:
        """`name` with the repeat that each stage in it means."""
        if isinstance(name, SoupName):
            return f"soup({', '.join(self._exact(part, reader) for part in name.parts)})"
        if isinstance(name, StageName):
            return str(exact(named_stage(self._run_file, name, reader).name))
        return str(name)

    def _of_stage(self, stage: StageConfig) -> dict[str, Tensor]:
        """From its checkpoint, in full precision; a merge that left the policy alone has none."""
        if not stage.makes_policy:
            return self._of_folder(str(self._products.folder(f"stage:{stage.name}", "weights")))
        end = self._checkpoints.stage_end(stage.name)
        if end is None or end.learner is None:
            raise ValueError(
                f"stage '{stage.name}' has not ended yet: there is no checkpoint of it"
            )
        return _parameters(end.learner)

    def _of_step(self, name: StepName) -> dict[str, Tensor]:
        """The policy after a step: a stage that trains has a checkpoint at every step that is
        named, one that does not leaves the policy as it was."""
        steps = self._checkpoints.steps()
        if not steps or steps[-1] < name.step:
            raise ValueError(f"'{name}': the run has no checkpoint of that step yet")
        learner = self._checkpoints.newest_learner(name.step)
        return self._of_folder(None) if learner is None else _parameters(learner)

    def policy(self, step: int) -> Single:
        """The name of the policy between two stages, after `step`."""
        is_trained = self._checkpoints.newest_learner(step) is not None
        return StepName(step) if is_trained else InitialName()

    def _of_folder(self, path: str | None) -> dict[str, Tensor]:
        """Of a Hugging Face folder or name; None is what the run began with."""
        # Loads transformers, which a driver that builds no model can do without
        from manta.actors.models.causal import build_model, model_state

        spec = replace(self._run_file.model, lora=None)
        if path is not None:
            spec = replace(spec, path=path, build=None)
        vocab_size = build_tokenizer(tokenizer_name(self._run_file)).vocab_size
        return model_state(build_model(spec, vocab_size, self._run_file.run.seed))


def soup(
    models: Iterable[Mapping[str, Tensor]],
    names: Sequence[str],
    shares: Sequence[float] = (),
) -> dict[str, Tensor]:
    """The average of `models`, in float32 (model soups, arXiv 2203.05482, section 2; with `shares`,
    which are divided by their sum, a weighted one). One model is in memory beside the sum.

    Raises ValueError naming the first tensor of a model that is not of the first one's shape.
    """
    given = list(shares) or [1.0] * len(names)
    assert len(given) == len(names)
    total = sum(given)
    mixed: dict[str, Tensor] = {}
    for model, name, share in zip(models, names, given, strict=True):
        if mixed:
            refuse_mismatch(mixed, model, f"'{name}' cannot be averaged with '{names[0]}'")
        for key, tensor in model.items():
            part = tensor.to(torch.float32) * (share / total)
            mixed[key] = mixed[key].add_(part) if key in mixed else part
    return mixed


def _parameters(learner: StoredFolder) -> dict[str, Tensor]:
    with learner.here() as folder:
        return read_parameters(folder)
