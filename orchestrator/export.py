"""Weights as Hugging Face folders: of `manta export`, and of stages' products.

Owns which checkpoint is meant, and what else a folder holds beside the model. An adapter is merged
into the weights it was trained over.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor, nn

from manta.actors.backends.state_files import read_parameters, read_scalars
from manta.actors.models.hf_folder import write_built
from manta.actors.stored_folder import StoredFolder
from manta.envs.protocols import Tokenizer
from manta.envs.tokenizer import TOKENIZER_FILES, FileTokenizer, build_tokenizer
from manta.orchestrator import run_file as run_files
from manta.orchestrator.build import tokenizer_name
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.config import RunFile
from manta.orchestrator.file_trouble import told_of
from manta.orchestrator.run_directory import RunDirectory


def export(named: str, folder: Path) -> int:
    """Writes the model of a run directory (`DIR`: its newest checkpoint, `DIR@STEP`: that one) to
    `folder`, which transformers and vLLM load: config.json, model.safetensors in the model's dtype,
    and the tokenizer's files where it has any.

    Raises ValueError where there is no such checkpoint, it is damaged, or `folder` is not empty or
    cannot be written.
    """
    directory, step = _meant(named)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a folder that is not there yet")
    run_file = run_files.load(directory.config)
    learner, step = _learner(directory, step)
    try:
        with told_of(f"{folder} cannot be written"):
            has_tokenizer = write_checkpoint(run_file, learner, folder)
    except SafetensorError as error:
        raise ValueError(f"{folder} cannot be written: {error}: make room there") from error
    console = Console()
    console.print(f"{folder}: the weights of step {step}", soft_wrap=True, highlight=False)
    if not has_tokenizer:
        name = (run_file.model.tokenizer or "").partition(":")[0]
        console.print(
            f"without tokenizer: '{name}' is Manta's own, no file of the Hugging Face kind",
            soft_wrap=True,
            highlight=False,
        )
    return 0


def write_checkpoint(run_file: RunFile, learner: StoredFolder, folder: Path) -> bool:
    """Writes the model of a checkpoint's `learner` files to `folder`, with the tokenizer's files,
    if it has any: whether it has.

    Raises ValueError where the files cannot be read, or belong to another model.
    """
    if run_file.model.build is not None and run_file.model.lora is None:
        with learner.here() as files:
            return write_tensors(run_file, read_parameters(files), folder)
    tokenizer = build_tokenizer(tokenizer_name(run_file))
    _write(_model(run_file, learner, tokenizer.vocab_size), folder)
    return bring_tokenizer(tokenizer, folder)


def write_tensors(run_file: RunFile, tensors: Mapping[str, Tensor], folder: Path) -> bool:
    """As `write_checkpoint`, of named parameters of the run's model, which has no adapter."""
    tokenizer, spec = build_tokenizer(tokenizer_name(run_file)), run_file.model
    if spec.build is not None:
        write_built(spec, tokenizer.vocab_size, tensors, folder)
    else:
        from manta.actors.models.causal import build_model, load_state

        model = build_model(spec, tokenizer.vocab_size, run_file.run.seed)
        load_state(model, tensors)
        _write(model, folder)
    return bring_tokenizer(tokenizer, folder)


def _meant(named: str) -> tuple[RunDirectory, int | None]:
    """The run directory, and the step if one is named."""
    root, at, step = named.rpartition("@")
    if not at or Path(named).is_dir():
        root, step = named, ""
    elif not step.isdecimal():
        raise ValueError(f"{named}: what follows the @ is a step's number, '{step}' is none")
    directory = RunDirectory(Path(root).absolute())
    if not directory.config.is_file():
        raise ValueError(f"{root} is no run directory: it holds no {directory.config.name}")
    return directory, int(step) if step else None


def _learner(directory: RunDirectory, step: int | None) -> tuple[StoredFolder, int]:
    """The learner's files at `step`, or the newest ones, and the step that wrote them."""
    place = directory.checkpoints_at()
    checkpoints = Checkpoints(place, keep=1)
    steps = checkpoints.steps()
    if not steps:
        raise ValueError(f"{place} holds no checkpoint: let the run come to its first one")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise ValueError(
            f"{place} holds no checkpoint of step {chosen}: there are those of {steps}"
        )
    try:
        checkpoints.at_step(chosen)
        learner = checkpoints.newest_learner(chosen)
    except ValueError as error:
        others = [each for each in steps if each != chosen]
        hint = f"; name another with @STEP, there are {others}" if others else ""
        raise ValueError(f"{error}{hint}") from error
    if learner is None:
        raise ValueError(f"{place}: no learner took part in the run up to step {chosen}")
    return learner, chosen


def _model(run_file: RunFile, learner: StoredFolder, vocab_size: int) -> nn.Module:
    """Raises ValueError where an adapter was trained over other weights than are there now."""
    # These load transformers, which the driver of a run should not have to
    from manta.actors.models.causal import build_model, load_state
    from manta.actors.models.lora import merge_adapter, weights_hash

    model, lora = build_model(run_file.model, vocab_size, run_file.run.seed), run_file.model.lora
    with learner.here() as folder:
        parameters, base = read_parameters(folder), read_scalars(folder).base
    if lora is None:
        load_state(model, parameters)
    elif base != weights_hash(model):
        raise ValueError(
            f"{learner}: its adapter was trained over other weights than those of "
            f"{run_file.model.path or 'model.build'}: put back the model that the run began with"
        )
    else:
        merge_adapter(model, lora, parameters)
    return model


def _write(model: nn.Module, folder: Path) -> None:
    from transformers import PreTrainedModel
    from transformers.utils.logging import disable_progress_bar

    # A bar of its own would run through the display of a run
    disable_progress_bar()
    cast(PreTrainedModel, model).save_pretrained(folder)


def bring_tokenizer(tokenizer: Tokenizer, folder: Path) -> bool:
    """Copies the tokenizer's files to `folder`; whether it has any."""
    if not isinstance(tokenizer, FileTokenizer):
        return False
    source = Path(tokenizer.path).parent
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return True
