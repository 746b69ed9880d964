"""From a learner's files to a folder that transformers scores with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.residents import build_residents
from manta.actors.backends.settings import LearnerSettings
from manta.actors.models.causal import build_model
from manta.actors.models.reward_model import RewardModel, load_reward_model
from manta.actors.stored_folder import StoredFolder
from manta.algorithms.part_settings import RewardModelSettings
from manta.algorithms.presets import PRESETS
from manta.envs.tokenizer import build_tokenizer
from manta.orchestrator import reward_model_export
from manta.orchestrator.reward_model_export import export_reward_model
from tests.unit.orchestrator.tiny_run import load


def saved(folder: Path, algorithm: str) -> RewardModel | None:
    """A learner's files after a stage, and the reward model among them."""
    run_file = load(folder)
    settings, vocab_size = LearnerSettings(), 14
    policy = build_model(run_file.model, vocab_size, 0)
    residents = build_residents(PRESETS[algorithm], settings, run_file.model, vocab_size, policy)
    modules = [resident.module for resident in residents.values()]
    for module in modules:
        module.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr,operator]
    PlainBackend(policy, settings, None, residents).save(folder / "learner")
    return modules[0] if modules and isinstance(modules[0], RewardModel) else None


def test_the_folder_scores_as_the_learner_did(tmp_path: Path) -> None:
    reward = saved(tmp_path, "reward_model")
    assert reward is not None
    learner = StoredFolder.at(str(tmp_path / "learner"))
    export_reward_model(load(tmp_path), RewardModelSettings(), learner, tmp_path / "out")
    text = build_tokenizer("char:0123456789+=")
    ids = torch.tensor([[*text.encode("1+2=3"), text.eos_id]])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.pad_token_id == text.pad_id
    wanted = reward.body(input_ids=ids).last_hidden_state[0, -1] @ reward.head.weight[0]
    torch.testing.assert_close(model(input_ids=ids).logits[0, 0], wanted, rtol=1e-5, atol=1e-6)
    own = load_reward_model(tmp_path / "out", "float32")
    for name, parameter in reward.named_parameters():
        theirs = name.replace("body.", "model.").replace("head.", "score.")
        assert torch.equal(own.get_parameter(theirs), parameter), name


def test_an_end_token_that_pads_too_is_no_pad_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else transformers would take the token before the end for the last one."""
    saved(tmp_path, "reward_model")
    text = build_tokenizer("char:0123456789+=")
    text.pad_id = text.eos_id
    monkeypatch.setattr(reward_model_export, "build_tokenizer", lambda name: text)
    learner = StoredFolder.at(str(tmp_path / "learner"))
    export_reward_model(load(tmp_path), RewardModelSettings(), learner, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.pad_token_id is None


@pytest.mark.parametrize("algorithm", ["sft", "ppo"])
def test_files_without_a_reward_model_are_told(tmp_path: Path, algorithm: str) -> None:
    assert saved(tmp_path, algorithm) is None
    learner = StoredFolder.at(str(tmp_path / "learner"))
    with pytest.raises(ValueError, match="holds no reward model: name a checkpoint of a stage"):
        export_reward_model(load(tmp_path), RewardModelSettings(), learner, tmp_path / "out")


def test_a_model_of_other_sizes_is_told(tmp_path: Path) -> None:
    saved(tmp_path, "reward_model")
    run_file = load(tmp_path)
    assert run_file.model.build is not None
    sizes = replace(run_file.model.build, mlp_width=24)
    other = replace(run_file, model=replace(run_file.model, build=sizes))
    learner = StoredFolder.at(str(tmp_path / "learner"))
    with pytest.raises(ValueError, match="no reward model of that kind"):
        export_reward_model(other, RewardModelSettings(), learner, tmp_path / "out")
