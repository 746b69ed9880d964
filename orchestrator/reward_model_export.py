"""From the checkpoint at a stage's end to the reward model that it trained, as a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from manta.actors.backends.settings import REWARD
from manta.actors.backends.state_files import read_resident
from manta.actors.models.reward_model import save_reward_model
from manta.actors.stored_folder import StoredFolder
from manta.algorithms.part_settings import RewardModelSettings
from manta.envs.tokenizer import build_tokenizer
from manta.orchestrator.build import tokenizer_name
from manta.orchestrator.config import RunFile
from manta.orchestrator.export import bring_tokenizer


def export_reward_model(
    run_file: RunFile, settings: RewardModelSettings, learner: StoredFolder, folder: Path
) -> None:
    """Writes the reward model among a checkpoint's `learner` files to `folder`, which
    `AutoModelForSequenceClassification.from_pretrained` loads, with the tokenizer's files where it
    has any. `settings` are those of the stage that trained it.

    Raises ValueError where the files cannot be read, or hold none of that kind.
    """
    with learner.here() as place:
        tensors = read_resident(place, REWARD)
    if not tensors:
        raise ValueError(
            f"{learner} holds no reward model: name a checkpoint of a stage whose algorithm trains "
            "one (reward_model)"
        )
    spec = run_file.model
    if settings.path is not None:
        spec = replace(spec, path=settings.path, build=None)
    tokenizer = build_tokenizer(tokenizer_name(run_file))
    # Rows end with the end token: where it pads as well, padding could not be told from an end
    pad_id = None if tokenizer.pad_id == tokenizer.eos_id else tokenizer.pad_id
    save_reward_model(folder, replace(spec, lora=None), tokenizer.vocab_size, tensors, pad_id)
    bring_tokenizer(tokenizer, folder)
