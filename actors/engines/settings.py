"""What a rollout engine is told (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from manta.actors.worker_range import WorkerRange, range_of
from manta.envs.records import Json

WhenTooOld: TypeAlias = Literal["wait", "drop_and_replace", "mask_tokens"]


@dataclass(frozen=True, slots=True)
class SimulatedSettings:
    """The simulated engine's token clock and length distribution (lognormal, in tokens).
    `length_prompt_share` is the part of the log-length's variance that is the prompt's, and the
    same for all its samples; the rest is each sample's own."""

    tokens_per_second: float = 1000.0
    length_median: float = 64.0
    length_sigma: float = 1.0
    length_prompt_share: float = 0.0


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What only vLLM is told.

    `kv_cache_gib` is the memory for keys and values of each device, in GiB; without it a CPU worker
    takes what `max_rows` whole contexts need, at most `manta.actors.engines.kv_memory.CPU_BYTES`,
    and a GPU what `gpu_memory_utilization` of its memory leaves. `tensor_parallel` splits every
    layer over that many devices (or CPU processes), `data_parallel` runs that many copies behind
    one worker. `options` are further arguments of vLLM's `EngineArgs`, by their names there.
    """

    kv_cache_gib: float | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel: int = 1
    data_parallel: int = 1
    prefix_caching: bool = True
    options: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapSettings:
    """Bounds the new tokens of each sample to train on, below `max_new_tokens`: by `tokens`, or by
    `medians` times the running median of lengths. `then` says what becomes of a sample that a bound
    ended: it trains as it is (`truncate`), or carries no loss (`mask`)."""

    tokens: int | None = None
    medians: float | None = None
    then: Literal["truncate", "mask"] = "truncate"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`rollout:` in a run file: the engine named `policy`.

    There are `workers` engines that serve, or as many between two bounds as there is work for, and
    `standby` more that hold the same weights and serve at once where one dies. `max_rows` bounds
    the samples decoded side by side in one engine; `threads` are torch threads
    of each worker (0: all cores that it may use), `devices` its GPUs (0: it runs on the CPU). With
    `ignore_eos` the end token ends nothing: every sample has exactly its budget of tokens.

    An engine holds at most `queue_rows` (default: a quarter of `max_rows`) beyond `max_rows`;
    what is more waits in the router. With `adaptive_rows` that bound follows the engine's speed.
    A call that takes longer is looked at every `progress_seconds`: what it has made by then is
    kept where the engine is lost.

    `max_staleness` is how many steps groups are made ahead, and so how many the weights that
    sample may be behind. A token is too old `max_token_age` steps behind (None: `max_staleness`,
    which nothing exceeds), `when_too_old` says what then. `oversample` times the groups of a
    step are begun, and the first to finish train; `overtaken` says whether the others start anew
    later or go on over the publish. `redundant_samples` more than a group takes are begun, and the
    first to end train. `cap` bounds samples by the usual length. `dispatch` is who of the groups
    that are admitted together starts first.

    With `placement` `colocated` an engine stands on the device of a learner rank and sleeps while
    that trains; `disaggregated` engines have devices of their own.

    `kv_on_publish` says what becomes of the cached keys and values of running samples when weights
    change: with `recompute` they are made anew, so that every token's log-prob is that of the
    weights it carries; with `keep` they stay, which is cheaper and no longer exact.
    """

    engine: Literal["embedded", "vllm", "simulated"] = "embedded"
    placement: Literal["disaggregated", "colocated"] = "disaggregated"
    workers: int | WorkerRange = 1
    standby: int = 0
    threads: int = 0
    devices: int = 0
    max_rows: int = 256
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_staleness: int = 0
    max_token_age: int | None = None
    when_too_old: WhenTooOld = "wait"
    oversample: float = 1.0
    overtaken: Literal["start_anew", "carry_over"] = "start_anew"
    redundant_samples: int = 0
    cap: CapSettings | None = None
    dispatch: Literal["in_order", "longest_first"] = "in_order"
    ignore_eos: bool = False
    kv_on_publish: Literal["recompute", "keep"] = "recompute"
    vllm: VllmSettings = field(default_factory=VllmSettings)
    queue_rows: int | None = None
    adaptive_rows: bool = False
    progress_seconds: float = 5.0
    simulated: SimulatedSettings = field(default_factory=SimulatedSettings)

    @property
    def sizes(self) -> WorkerRange:
        return range_of(self.workers)

    @property
    def rows_ahead(self) -> int:
        """Rows that an engine may hold beyond those it decodes; also the rows of one call."""
        return max(1, self.max_rows // 4) if self.queue_rows is None else self.queue_rows
