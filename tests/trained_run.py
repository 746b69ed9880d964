"""A run directory with checkpoints, as a run leaves it, without the run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.models.lora import build_policy
from manta.actors.stored_folder import StoredFolder
from manta.envs.tokenizer import build_tokenizer
from manta.orchestrator import run_file
from manta.orchestrator.build import tokenizer_name
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.config import RunFile
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.run_state import RunState
from tests.unit.orchestrator.tiny_run import load


class TrainedRun:
    """A run directory with checkpoints of models whose weights differ from step to step."""

    def __init__(
        self, folder: Path, steps: tuple[int, ...], *overrides: str, noise: float = 0.0
    ) -> None:
        """`noise` more is added to initial weights, which alone give nearly even outputs."""
        loaded = load(folder, f"run.dir={folder}", *overrides)
        self.root = folder / "tiny"
        directory = RunDirectory(self.root)
        directory.create()
        directory.config.write_text(run_file.dump(loaded))
        directory.place_checkpoints(loaded.checkpoint.path)
        self.place = directory.checkpoints_at()
        self.models = {}
        checkpoints = Checkpoints(self.place, keep=9)
        for step in steps:
            vocab_size = build_tokenizer(tokenizer_name(loaded)).vocab_size
            model = build_policy(loaded.model, vocab_size, _seed(loaded, step))
            _disturb(model, step, noise)
            backend = PlainBackend(model, LearnerSettings())
            learner = StoredFolder.at(checkpoints.begin(step))
            files = learner.fill(backend.snapshot())
            checkpoints.commit(RunState(step, "rl", step, False, None, 0, 0, 0), files)
            self.models[step] = model


def _seed(loaded: RunFile, step: int) -> int:
    """Of the weights; those under an adapter are the run's own."""
    return step if loaded.model.lora is None else loaded.run.seed


def _disturb(model: nn.Module, step: int, noise: float) -> None:
    """As it begins, an adapter changes nothing."""
    generator = torch.Generator().manual_seed(step)
    for name, parameter in model.named_parameters():
        scale = 0.1 if "lora_B" in name else noise
        if scale:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * scale)
