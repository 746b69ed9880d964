"""`manta export`: what transformers reads is the checkpoint's model."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from manta.actors.backends.state_files import Scalars, Shard, write_state
from manta.actors.models.policy import token_logprobs
from manta.actors.stored_folder import StoredFolder
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.cli import main
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.run_state import RunState
from tests.trained_run import TrainedRun

WORDS = ("0", "1", "2", "+", "=", "<eos>")
ROWS = [np.array([3, 1, 4, 1, 5], np.int32), np.array([2, 0], np.int32)]


def tokenizer_folder(folder: Path) -> Path:
    folder.mkdir()
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="0"))
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return folder


def logprobs(model: torch.nn.Module) -> np.ndarray:
    return np.concatenate(token_logprobs(model, ROWS))


def test_transformers_computes_what_the_checkpoint_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tokenizer_folder(tmp_path / "words")
    run = TrainedRun(tmp_path, (4, 6), f"model.tokenizer={source}")
    for named, step in ((str(run.root), 6), (f"{run.root}@4", 4)):
        folder = tmp_path / f"exported-{step}"
        assert main(["export", named, str(folder)]) == 0
        assert f"the weights of step {step}" in capsys.readouterr().out.replace("\n", " ")
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        tokens = torch.from_numpy(ROWS[0].astype(np.int64))[None]
        with torch.no_grad():
            whole_LV = torch.log_softmax(loaded(tokens).logits[0], -1)
        found = whole_LV[:-1].gather(1, tokens[0, 1:, None])[:, 0].numpy()
        wanted = token_logprobs(run.models[step], ROWS)[0][1:]
        assert np.abs(found - wanted).max() < 1e-6
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
        words = AutoTokenizer.from_pretrained(folder)
        assert words.eos_token == "<eos>"
        assert words.convert_tokens_to_ids(["1", "+", "2"]) == [1, 3, 2]
    assert np.abs(logprobs(run.models[4]) - logprobs(run.models[6])).max() > 1e-4


def test_checkpoints_that_are_elsewhere_and_characters_for_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TrainedRun(tmp_path, (4,), f"checkpoint.path=file://{tmp_path}/bucket")
    assert run.place.location.startswith(f"file://{tmp_path}/bucket/tiny-")
    assert main(["export", str(run.root), str(tmp_path / "out")]) == 0
    assert "without tokenizer: 'char'" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert np.abs(logprobs(loaded) - logprobs(run.models[4])).max() < 1e-6


def test_shards_are_exported_as_one(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path, (4,))
    state = {name: p.detach() for name, p in run.models[4].named_parameters()}
    names = sorted(state)
    checkpoints = Checkpoints(run.place, keep=9)
    learner = StoredFolder.at(checkpoints.begin(6))

    def write(folder: Path) -> None:
        for index, part in enumerate((names[::2], names[1::2])):
            tensors = {name: state[name] for name in part}
            write_state(folder, tensors, {}, Scalars("sgd", 0), Shard(index, 2))

    files = learner.fill(write)
    assert "model-00002-of-00002.safetensors" in {file.name for file in files}
    checkpoints.commit(RunState(6, "rl", 6, False, None, 0, 0, 0), files)
    assert main(["export", f"{run.root}@6", str(tmp_path / "out")]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert np.abs(logprobs(loaded) - logprobs(run.models[4])).max() < 1e-6


LORA = "model.lora={rank: 2, alpha: 6, targets: [q_proj, o_proj, down_proj]}"


def test_an_adapter_is_merged_into_the_weights_it_was_trained_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TrainedRun(tmp_path, (4, 6), LORA)
    assert main(["export", str(run.root), str(tmp_path / "out")]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("lora" in name for name in loaded.state_dict())
    assert np.abs(logprobs(loaded) - logprobs(run.models[6])).max() < 1e-6
    assert np.abs(logprobs(loaded) - logprobs(run.models[4])).max() > 1e-3
    other = RunDirectory(run.root).config
    other.write_text(other.read_text().replace("seed: 0", "seed: 1"))
    assert main(["export", str(run.root), str(tmp_path / "again")]) == 2
    assert "trained over other weights than those of model.build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("", "is no run directory: it holds no config.yaml"),
        ("tiny@best", "what follows the @ is a step's number, 'best' is none"),
        ("tiny@5", "holds no checkpoint of step 5: there are those of [4, 6]"),
        ("tiny@4", "were written; name another with @STEP, there are [6]"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str, told: str
) -> None:
    run = TrainedRun(tmp_path, (4, 6))
    (run.root / "checkpoints/step=000004/learner/model.safetensors").write_bytes(b"torn")
    assert main(["export", f"{tmp_path}/{named}", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_checkpoint_and_a_folder_in_use_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TrainedRun(tmp_path, ())
    assert main(["export", str(run.root), str(tmp_path / "out")]) == 2
    assert "holds no checkpoint: let the run come to its first one" in capsys.readouterr().err
    assert main(["export", str(run.root), str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("room", [0, 600])
def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    """A file that may take no more bytes, as on a full disk; and a file where a folder is meant."""
    run = TrainedRun(tmp_path, (4,))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        assert main(["export", str(run.root), str(tmp_path / "out")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err
    assert told.startswith(f"manta export: {tmp_path}/out cannot be written: ")
    assert "File too large" in told and "make room there" in told
    assert main(["export", str(run.root), str(run.root / "config.yaml")]) == 2
    assert "File exists: something else stands where it is needed" in capsys.readouterr().err
