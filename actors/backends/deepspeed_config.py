"""DeepSpeed's configuration, as far as a run file may write it, and the whole of it for a learner.

Owns which keys are open, and where in the run file the others are decided. Loads no deepspeed.
"""

from __future__ import annotations

from collections.abc import Mapping

from manta.actors.backends.settings import LearnerSettings
from manta.envs.records import Json

OPEN = (
    "zero_optimization",
    "wall_clock_breakdown",
    "memory_breakdown",
    "flops_profiler",
    "comms_logger",
    "steps_per_print",
)
"""Top-level keys that a run file may set."""

OPEN_ZERO = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "round_robin_gradients",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_module_granularity_threshold",
    "log_trace_cache_warnings",
)
"""Keys below `zero_optimization`: how much travels at once, nothing that changes a number."""

_SUMMED = "learner.backend (gradients are summed over ranks, whatever the backend)"

DECIDED: Mapping[str, str] = {
    "optimizer": "learner.optimizer",
    "scheduler": "learner.warmup_steps and learner.decay",
    "train_batch_size": "prompts_per_step of the stage",
    "train_micro_batch_size_per_gpu": "learner.tokens_per_micro_batch",
    "gradient_accumulation_steps": "learner.tokens_per_micro_batch",
    "managed_gradient_accumulation": "learner.tokens_per_micro_batch",
    "gradient_clipping": "learner.clip_norm",
    "fp16": "model.dtype",
    "bf16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "model.dtype",
    "communication_data_type": "model.dtype",
    "gradient_allreduce_op": _SUMMED,
    "gradient_predivide_factor": _SUMMED,
    "prescale_gradients": _SUMMED,
    "checkpoint": "checkpoint",
    "tensorboard": "track",
    "wandb": "track",
    "csv_monitor": "track",
    "zero_optimization.stage": "learner.deepspeed.stage",
    "zero_optimization.offload_optimizer": "learner.deepspeed.offload_optimizer",
    "zero_optimization.cpu_offload": "learner.deepspeed.offload_optimizer",
}
"""Keys that contradict the run file, and the key of the run file that decides."""

MOST_BUCKET = 50_000_000
"""Elements: DeepSpeed's own 500 million are 2 GiB of buffer."""


def whole_config(settings: LearnerSettings, num_parameters: int) -> dict[str, Json]:
    """What `deepspeed.initialize` gets for `settings`, whose `deepspeed.config` has been checked.

    The batch sizes are those of nobody: micro-batches are Manta's, and its losses are divided
    already.
    """
    own = settings.deepspeed
    open_keys = {key: value for key, value in own.config.items() if key in OPEN}
    asked = own.config.get("zero_optimization")
    zero: dict[str, Json] = {"reduce_bucket_size": min(MOST_BUCKET, max(1024, num_parameters))}
    zero.update(asked if isinstance(asked, dict) else {})
    zero["stage"] = own.stage
    if own.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        **open_keys,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Without ZeRO the norm is taken, and the gradient clipped, before DeepSpeed steps.
        "gradient_clipping": settings.clip_norm if own.stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
