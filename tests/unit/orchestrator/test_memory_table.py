"""What a learner rank needs by backend, against DeepSpeed's own estimators."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from manta.actors.backends.settings import FsdpSettings
from manta.actors.models.spec import ModelSpec
from manta.orchestrator.cli import main
from manta.orchestrator.config import RunFile
from manta.orchestrator.memory import learner_parts
from manta.orchestrator.memory_table import memory_table
from manta.orchestrator.model_sizes import ModelSizes, model_sizes, num_parameters
from tests.contract.backend_kinds import NEEDS_DEEPSPEED
from tests.unit.orchestrator.tiny_run import load, write

GIB = 2**30
GPUS = (8, 64, 512)
SEVENTY = {
    "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
    "tie_word_embeddings": False,
}  # fmt: skip
STATES = ("master weights", "working weights", "gradient", "adamw states",
          "the gradient's part that is stepped by")  # fmt: skip


def folder_of_70b(tmp_path: Path) -> Path:
    folder = tmp_path / "seventy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SEVENTY))
    return folder


def seventy(tmp_path: Path, *overrides: str) -> tuple[RunFile, ModelSizes]:
    """A run of the 70B model, and its sizes."""
    folder = folder_of_70b(tmp_path)
    loaded = load(tmp_path, f"model.path={folder}", "model.build=null", *overrides)
    sizes = model_sizes(ModelSpec(path=str(folder)), SEVENTY["vocab_size"])  # type: ignore[arg-type]
    return loaded, sizes


def states(run_file: RunFile, sizes: ModelSizes, on_host: bool) -> int:
    """Bytes of weights, gradients and optimizer state of one rank, on the GPU or on its host."""
    parts = learner_parts(run_file, sizes)
    return sum(p.bytes for p in parts if p.what in STATES and p.on_host == on_host)


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("offload", ["none", "cpu"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_is_deepspeed_s_own_estimate_and_what_is_held_more(
    tmp_path: Path, stage: int, offload: str, gpus: int
) -> None:
    """The differences are those of the docstring of `manta.orchestrator.memory_table`."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    run_file, sizes = seventy(
        tmp_path, "learner.backend=deepspeed", f"learner.workers={gpus}",
        f"learner.deepspeed={{stage: {stage}, offload_optimizer: {offload}}}",
    )  # fmt: skip
    count = num_parameters(sizes)
    nodes, a_node = gpus // 8, 8
    options = {"cpu_offload": offload == "cpu", "additional_buffer_factor": 1.0}
    if stage == 3:
        largest = 0  # what is whole for a while is not of the states
        host, device, _ = estimate_zero3_model_states_mem_needs(
            count, largest, a_node, nodes, cpu_offload_params=False, **options
        )
    else:
        host, device = estimate_zero2_model_states_mem_needs(count, a_node, nodes, **options)
    wide_weights = 2 * count if stage < 3 else 2 * count // gpus
    made_16_bit = 0 if offload == "cpu" or stage == 3 else 2 * count // gpus
    whole_gradient = 4 * count - made_16_bit
    found = states(run_file, sizes, on_host=False)
    assert found - wide_weights - whole_gradient == pytest.approx(device, rel=0.01)
    on_host = states(run_file, sizes, on_host=True)
    if offload == "none":
        assert on_host == 0
    elif stage == 3:
        assert a_node * on_host == pytest.approx(host, rel=0.01)
    else:
        # There, the whole model is loaded by every process: more than 16 bytes beyond 4 GPUs.
        assert gpus * on_host == pytest.approx(host * 16 / max(16, 4 * gpus), rel=0.01)


def test_what_70b_needs_can_be_read_off(tmp_path: Path) -> None:
    run_file, sizes = seventy(tmp_path, "model.dtype=bfloat16", "model.context=8192")
    assert num_parameters(sizes) == 70_553_706_496
    table = {row.backend: row.needs for row in memory_table(run_file, sizes, GPUS)}
    assert list(table) == [
        "plain",
        "fsdp", "fsdp, offload", "fsdp, activations again", "fsdp, activations again, offload",
        "ZeRO 1, float32", "ZeRO 1, float32, offload", "ZeRO 2, float32",
        "ZeRO 2, float32, offload", "ZeRO 3, float32", "ZeRO 3, float32, offload",
    ]  # fmt: skip
    # 18 bytes a parameter, whatever the number of GPUs
    assert {round(need.device / GIB) for need in table["plain"]} == {
        round(table["plain"][0].device / GIB)
    }
    assert table["plain"][0].device > 18 * 70.5e9
    # By sharing out: no longer on 8 of 80 GiB, easily on 64
    again = [need.device / GIB for need in table["fsdp, activations again"]]
    assert again[0] > 130 > 80 > again[1] > again[2]
    assert again[0] - again[1] == pytest.approx(16 * 70.553706496e9 * (1 / 8 - 1 / 64) / GIB)
    offloaded = [need.device / GIB for need in table["fsdp, activations again, offload"]]
    assert offloaded[0] == offloaded[2] < again[2]
    assert all(need.host > other.host for need, other in zip(
        table["fsdp, offload"], table["fsdp"], strict=True))  # fmt: skip
    # A whole float32 gradient on every rank is more than a GPU has.
    assert min(need.device for name, needs in table.items() if "ZeRO" in name
               for need in needs) > 4 * 70.5e9  # fmt: skip


@pytest.mark.parametrize(
    "override",
    [
        "model.lora={rank: 4}",
        "learner.optimizer=muon",
        "stages.rl.algorithm=ppo",
        "stages.rl.algorithm=prime",
        "stages.rl.algorithm=reward_model",
    ],
)
def test_what_needs_whole_parameters_is_plain_alone(tmp_path: Path, override: str) -> None:
    run_file = load(tmp_path, override)
    rows = memory_table(run_file, model_sizes(run_file.model, 14), (1, 2))
    assert [row.backend for row in rows] == ["plain"]


def test_computing_activations_again_keeps_a_layer_s_input(tmp_path: Path) -> None:
    run_file, sizes = seventy(tmp_path, "learner.backend=fsdp", "model.dtype=bfloat16")
    kept, again = (
        {part.what: part.bytes for part in learner_parts(each, sizes)}["activations"]
        for each in (run_file, _again(run_file))
    )
    tokens = run_file.learner.tokens_per_micro_batch
    assert again == pytest.approx(kept / 80 + tokens * 80 * 2 * 8192, rel=1e-6)


def _again(run_file: RunFile) -> RunFile:
    learner = replace(run_file.learner, fsdp=FsdpSettings(checkpoint_activations=True))
    return replace(run_file, learner=learner)


def test_check_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", write(tmp_path), "--gpus", "8,512", "run.seed=3"]) == 0
    output = capsys.readouterr().out
    for words in ("Learner by backend", "8 GPUs", "512 GPUs", "ZeRO 3, offload", "seed: 3"):
        assert words in output
    for wrong in ("8,x", "0", ""):
        with pytest.raises(SystemExit) as caught:
            main(["check", write(tmp_path), "--gpus", wrong])
        assert caught.value.code == 2
        assert "give numbers of GPUs, such as 8,64,512" in capsys.readouterr().err
