"""Starting vLLM: from a run file's settings to its engine arguments and its processes' environment.

Owns which arguments are Manta's and what they mean to vLLM. Whether the user's own `options` exist
is checked before a run starts, by `manta.orchestrator.vllm_check`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import get_args

from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from manta.actors.cores import available_cores
from manta.actors.engines.kv_memory import CPU_BLOCK, CPU_BYTES, default_cpu_bytes
from manta.actors.engines.settings import EngineSettings
from manta.actors.engines.vllm_folder import ServedModel
from manta.actors.models.spec import LoraSpec, ModelSpec
from manta.actors.restored_environment import restored_environment
from manta.envs.records import Json

EXTENSION = "manta.actors.engines.vllm_worker.WorkerExtension"
IN_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""vLLM's executor for one process. It refuses that for a CPU under the name `uni`, since it sets
OpenMP's variables for processes below the core only; those that Manta sets (see `_variables`) the
core has from its start."""
_FEWEST_BATCHED_TOKENS = 8192


def start(
    settings: EngineSettings, spec: ModelSpec, served: ServedModel, direct: str | None = None
) -> AsyncLLM:
    """vLLM with `served` loaded; returns when its processes are ready (about 12 s on a CPU)."""
    # vLLM adds variables too, such as libraries to load before all others, which are not for
    # whatever starts here later.
    with restored_environment() as environment:
        environment.update(_variables(settings, spec, served))
        arguments = AsyncEngineArgs(**engine_arguments(settings, spec, served, direct))
        return AsyncLLM.from_engine_args(arguments)


def engine_arguments(
    settings: EngineSettings, spec: ModelSpec, served: ServedModel, direct: str | None = None
) -> dict[str, object]:
    """The keywords of vLLM's `AsyncEngineArgs`; the user's `options` come last. `direct` is the
    transport, if any, by which vLLM's processes take weights from learner ranks themselves."""
    own = settings.vllm
    arguments: dict[str, object] = {
        "model": served.name,
        "dtype": spec.dtype,
        "skip_tokenizer_init": True,
        "worker_extension_cls": EXTENSION,
        # What was sampled from is what the learner's ratio needs, not the raw distribution.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        # One more than the context: vLLM scores no row without room for a token after it.
        "max_model_len": spec.context + 1,
        # vLLM's bound is that of each copy, Manta's that of the worker.
        "max_num_seqs": math.ceil(settings.max_rows / own.data_parallel),
        "max_num_batched_tokens": max(_FEWEST_BATCHED_TOKENS, settings.max_rows),
        "tensor_parallel_size": own.tensor_parallel,
        "data_parallel_size": own.data_parallel,
        "enable_prefix_caching": own.prefix_caching,
        "distributed_executor_backend": _executor(settings),
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    arguments |= _memory(settings, spec, served)
    if settings.devices > 0 and settings.placement == "colocated":
        arguments["enable_sleep_mode"] = True
    if spec.lora is not None:
        arguments |= _adapter(spec.lora)
    if direct is not None:
        arguments["weight_transfer_config"] = {"backend": direct}
    if settings.devices == 0:
        # Compiling takes longer than a small run, and a compiler that need not be there.
        arguments |= {"enforce_eager": True, "block_size": CPU_BLOCK}
    return arguments | dict(own.options)


def _executor(settings: EngineSettings) -> str:
    """Where vLLM computes: in processes of its own, or in the engine core, which spares one that
    would import everything again."""
    own = settings.vllm
    is_one = own.tensor_parallel == own.data_parallel == 1
    return IN_CORE if settings.devices == 0 and is_one else "mp"


def _adapter(lora: LoraSpec) -> Mapping[str, object]:
    """One adapter at a time; the one before it is still there while the next one is loaded."""
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 2,
        "max_lora_rank": min(rank for rank in get_args(MaxLoRARanks) if rank >= lora.rank),
        "lora_target_modules": list(lora.targets),
    }


def _memory(settings: EngineSettings, spec: ModelSpec, served: ServedModel) -> Mapping[str, Json]:
    own = settings.vllm
    if own.kv_cache_gib is not None:
        return {"kv_cache_memory_bytes": int(own.kv_cache_gib * 2**30)}
    if settings.devices > 0:
        return {"gpu_memory_utilization": own.gpu_memory_utilization}
    if served.kv is None:
        return {"kv_cache_memory_bytes": CPU_BYTES}
    token = served.kv.token_bytes(own.tensor_parallel)
    block = own.options.get("block_size", CPU_BLOCK)
    assert isinstance(block, int)
    size = default_cpu_bytes(token, spec.context + 1, settings.max_rows, block)
    return {"kv_cache_memory_bytes": size}


def _variables(settings: EngineSettings, spec: ModelSpec, served: ServedModel) -> Mapping[str, str]:
    variables = {
        # Nothing is reported to anybody.
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # A forked child of a process that has run OpenMP or CUDA hangs.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        variables["VLLM_LOGGING_LEVEL"] = "WARNING"
    if settings.devices == 0:
        threads = settings.threads or available_cores()
        # Bound threads of several roles would all sit on the same first cores.
        variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        # Ranks of tokens are counted by a compiled function: half a minute for nothing we ask for.
        variables["TORCHDYNAMO_DISABLE"] = "1"
    if served.positions is not None and served.positions <= spec.context:
        # For the token after the last, which is never fed (see `max_model_len`).
        variables["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    return variables
