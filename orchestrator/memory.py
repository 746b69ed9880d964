"""How much memory each role needs, estimated from sizes before anything starts.

Owns the formulas. They are upper bounds of what Manta itself allocates; the libraries of a worker
process (Python, torch, Ray) come on top, about 400 MiB each, counted as one line. A model's sizes
are `manta.orchestrator.model_sizes`'.

With P parameters of e bytes, N tokens of a micro-batch, width W, query width Q = heads x head size,
key width K = key heads x head size, feed-forward width M, H heads, S layers, V vocabulary:

- learner, per rank: master weights 4P, gradient 4P, AdamW's two moments 8P (SGD with momentum 4P;
  Muon 4P, but 8P of what is no hidden matrix), and eP of working weights where they are not float32
  (Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3.1, with float32 gradients). Every rank of
  the plain backend holds all of it; what others hold is `manta.orchestrator.learner_share`'s, and
  what they gather at a time are embeddings, head and two layers, with their gradient.
  With an adapter P are its own parameters, and the weights under it come once on top. The same
  again for a critic that is a model of its own, without a head, or for a reward model; for an
  implicit one with its head, and without activations: it and the policy learn in turns.
- what a checkpoint is written from, beside the steps: a copy of master weights and optimizer
  state, of which each rank has its share (of sharded backends rank 0 has all).
- saved for the backward pass: N S (e (4W + 2Q + 2K + 4M) + 8W + 4 (H + 2)) bytes (N S e W and one
  layer's share of that where activations are computed again), after Korthikanti
  et al., arXiv 2205.05198, section 4, for a block with SwiGLU, grouped keys and attention that
  stores a log-sum per head instead of scores; both norms keep a float32 copy of their input, 8W,
  unless that is float32 already.
- logits of trained tokens: three float32 arrays (log-probs, probabilities, gradient) of one chunk,
  min(N V, 2^22) elements.
- keys and values: rows x context x S x 2K x e; of a vLLM engine what its cache is given, on the
  CPU (what a GPU holds is not estimated).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from manta.actors.backends.settings import LearnerSettings
from manta.actors.engines.kv_memory import CPU_BLOCK, KeyValueShape, default_cpu_bytes
from manta.actors.engines.settings import EngineSettings
from manta.actors.models.spec import ModelSpec
from manta.algorithms.catalogue import reference_top_k
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.learner_share import learner_share
from manta.orchestrator.model_sizes import (
    ModelSizes,
    model_sizes,
    num_hidden,
    num_parameters,
    num_trained,
)
from manta.orchestrator.reference_use import stages_with_reference
from manta.orchestrator.survey import Survey

MIB = 1 << 20
PROCESS_BYTES = 400 * MIB
"""Measured: a worker process with torch and transformers loaded, before it holds a model."""
VLLM_PROCESS_BYTES = 700 * MIB
"""Measured: one of vLLM's processes (worker, engine core, and the rollout worker itself)."""
CHUNK_ELEMENTS = 1 << 22
"""Tokens x vocabulary of one chunk of logits in the learner."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a worker of a role holds; `on_host` also where the worker has a GPU."""

    role: str
    what: str
    bytes: int
    on_host: bool = False


def saved_for_backward(sizes: ModelSizes, num_tokens: int, element_bytes: int) -> int:
    """Bytes of activations that the layers keep for the backward pass (see the module)."""
    width = sizes.width
    elements = 4 * width + 2 * sizes.query_width + 2 * sizes.key_width + 4 * sizes.mlp_width
    norms = 0 if element_bytes == 4 else 8 * width
    token = element_bytes * elements + norms + 4 * (sizes.heads + 2)
    return num_tokens * sizes.layers * token


def estimate(run_file: RunFile, survey: Survey) -> tuple[Part, ...]:
    """What each worker of each role holds at most.

    Raises ValueError where the model's sizes cannot be found.
    """
    assert survey.vocab_size is not None
    spec = run_file.model
    sizes = model_sizes(spec, survey.vocab_size)
    element = _element_bytes(spec.dtype)
    weights = num_parameters(sizes) * element
    parts: list[Part] = []
    if run_file.needs_learner:
        parts += learner_parts(run_file, sizes)
        published = num_trained(sizes, spec.lora) * element
        parts.append(Part("object store", "newest and next weights", 2 * published))
        parts.append(Part("weight store", "newest and next weights", 2 * published))
        parts.append(
            Part(
                "object store",
                "groups until a checkpoint covers them",
                max(_retained(run_file, stage, survey) for stage in run_file.stages),
            )
        )
    if run_file.needs_rollout and run_file.rollout.engine != "simulated":
        parts += _rollout(run_file.rollout, spec, sizes)
    referring = stages_with_reference(run_file)
    if referring:
        tokens = run_file.reference.tokens_per_batch
        models = max(run_file.reference_of(stage).num_models for stage in referring)
        layer = _one_layer(sizes, tokens, element)
        others = (models - 1) * tokens * sizes.width * element  # their last hidden states
        parts += [
            Part("reference", "process", PROCESS_BYTES),
            Part("reference", "weights", models * weights),
            Part("reference", "one layer's activations", layer + others),
            Part("reference", "logits of a chunk", models * logits_of_chunk(sizes, tokens)),
        ]
        if any(run_file.reference_of(stage).is_average for stage in referring):
            parts.append(Part("reference", "moving average", 4 * num_parameters(sizes)))
    return tuple(parts)


def group_bytes(samples: int, tokens: int, *, has_reference: bool, top_k: int = 0) -> int:
    """Of a scored group: ids 4, mask 1, behaviour log-probs 4, reference 4 and text 4 a token; of
    `top_k` likely tokens 8 each, and 8 for the rest and a weight."""
    likely = 8 * (top_k + 1) if top_k else 0
    return samples * tokens * (13 + (4 if has_reference else 0) + likely)


def kv_shape(sizes: ModelSizes, dtype: Literal["float32", "bfloat16"]) -> KeyValueShape:
    return KeyValueShape(sizes.layers, sizes.kv_heads, sizes.head_size, _element_bytes(dtype))


def _rollout(settings: EngineSettings, spec: ModelSpec, sizes: ModelSizes) -> list[Part]:
    rows, parallel = settings.max_rows, settings.vllm.tensor_parallel
    token = kv_shape(sizes, spec.dtype).token_bytes(1)
    weights = num_parameters(sizes) * _element_bytes(spec.dtype)
    logits = Part("rollout", "logits of one token a row", 2 * rows * sizes.vocabulary * 4)
    held = Part("rollout", "the bytes that deltas are applied to", weights)
    if settings.engine == "embedded":
        return [
            Part("rollout", "process", PROCESS_BYTES),
            Part("rollout", "weights", weights),
            held,
            Part("rollout", "keys and values", rows * spec.context * token),
            logits,
        ]
    own = settings.vllm
    processes = 2 + parallel * own.data_parallel
    parts = [
        Part("rollout", "vLLM's processes", processes * VLLM_PROCESS_BYTES),
        held,
        Part("rollout", "weights on their way to them", weights),
    ]
    if settings.devices > 0:
        return parts
    cache = default_cpu_bytes(token // parallel, spec.context + 1, rows, CPU_BLOCK)
    if own.kv_cache_gib is not None:
        cache = int(own.kv_cache_gib * 2**30)
    return [
        *parts,
        Part("rollout", "weights", weights * own.data_parallel),
        Part("rollout", "keys and values", cache * parallel * own.data_parallel),
        logits,
    ]


def learner_parts(run_file: RunFile, sizes: ModelSizes) -> list[Part]:
    """What each learner rank holds at most; rank 0, where ranks differ."""
    settings, spec = run_file.learner, run_file.model
    element, count = _element_bytes(spec.dtype), num_trained(sizes, spec.lora)
    states = _state_numbers(settings, count, count if spec.lora else num_hidden(sizes))
    tokens = max(settings.tokens_per_micro_batch, spec.context)
    # Of a sharded backend rank 0 writes everything
    writers = max(1, settings.ranks.min) if settings.backend == "plain" else 1
    share = learner_share(settings, count, element)
    optimizer = f"{settings.optimizer} states"
    held = [
        ("masters", "master weights", 4 * count, share.masters),
        ("working", "working weights", element * count, share.working),
        ("gradient", "gradient", 4 * count, share.gradient),
        ("stepped", "the gradient's part that is stepped by", 4 * count, share.stepped),
        ("states", optimizer, 4 * states, share.states),
    ]
    needless = {"working", "stepped"}
    parts = [
        Part("learner", "process", PROCESS_BYTES, on_host=True),
        *(
            Part("learner", what, math.ceil(whole * part), on_host=name in share.on_host)
            for name, what, whole, part in held
            if part or name not in needless
        ),
        Part("learner", "activations", _activations(settings, sizes, tokens, element)),
        Part("learner", "logits of a chunk", logits_of_chunk(sizes, tokens)),
        Part("learner", "weights to publish, and those before", 2 * element * count, on_host=True),
        Part("learner", "a checkpoint as it is written", 4 * (count + states) // writers, True),
    ]
    if spec.lora is not None:
        frozen = element * num_parameters(sizes)
        parts.insert(1, Part("learner", "the weights under the adapter", frozen))
    if share.gathers:
        whole = _gathered(sizes) * (element + 4)
        parts.append(Part("learner", "layers gathered at a time", whole))
    if share.bucket:
        parts.append(Part("learner", "buffer of gradients under way", 4 * share.bucket))
    return parts + _beside_policy(run_file, sizes, element)


def _gathered(sizes: ModelSizes) -> int:
    """Parameters that are whole at a time: those outside of the layers, and two layers."""
    outside = num_parameters(replace(sizes, layers=0))
    return outside + 2 * (num_parameters(replace(sizes, layers=1)) - outside)


def _beside_policy(run_file: RunFile, sizes: ModelSizes, element: int) -> list[Part]:
    """A critic of its own, or a reward model, is one more model without a head, an implicit one has
    one; with a path they count as large as the policy. Stages have theirs one after the other: the
    largest one counts."""
    trained = [s.algorithm for s in run_file.stages if s.kind == "train" and s.algorithm]
    trunk = num_parameters(replace(sizes, tied=True)) + sizes.width
    counts = {
        # Its head has a bias
        "critic": (trunk + 1) * any(a.critic and a.critic.model == "own" for a in trained),
        "reward model": trunk * any(a.reward_model for a in trained),
        "implicit reward model": num_parameters(sizes) * any(a.implicit_reward for a in trained),
    }
    settings, name = run_file.learner, max(counts, key=lambda each: counts[each])
    if not counts[name]:
        return []
    states = _state_numbers(settings, counts[name], num_hidden(sizes))
    held = (8 + (element if element != 4 else 0)) * counts[name] + 4 * states
    parts = [Part("learner", f"{name}: weights, gradient, optimizer states", held)]
    # An implicit one takes turns with the policy
    beside = [each for each in ("critic", "reward model") if counts[each]]
    if beside:
        tokens = max(settings.tokens_per_micro_batch, run_file.model.context)
        saved = saved_for_backward(sizes, tokens, element)
        parts.append(Part("learner", f"{beside[0]}: activations", saved))
    return parts


def _state_numbers(settings: LearnerSettings, count: int, hidden: int) -> int:
    """Numbers that the optimizer keeps of `count` parameters, of which `hidden` are in matrices of
    layers."""
    if settings.optimizer == "sgd":
        return count * int(settings.momentum != 0)
    return 2 * count - (hidden if settings.optimizer == "muon" else 0)


def _activations(settings: LearnerSettings, sizes: ModelSizes, tokens: int, element: int) -> int:
    if settings.backend == "fsdp" and settings.fsdp.checkpoint_activations:
        inputs = tokens * sizes.layers * element * sizes.width
        return inputs + _one_layer(sizes, tokens, element)
    return saved_for_backward(sizes, tokens, element)


def logits_of_chunk(sizes: ModelSizes, num_tokens: int) -> int:
    return 3 * 4 * min(num_tokens * sizes.vocabulary, max(CHUNK_ELEMENTS, sizes.vocabulary))


def _one_layer(sizes: ModelSizes, num_tokens: int, element: int) -> int:
    return saved_for_backward(sizes, num_tokens, element) // sizes.layers


def _retained(run_file: RunFile, stage: StageConfig, survey: Survey) -> int:
    if stage.algorithm is None or stage.kind != "train":
        return 0
    tokens = run_file.model.context
    if stage.name in survey.prompts:
        answer = max(run_file.rollout.max_new_tokens, survey.prompts[stage.name].longest_answer)
        tokens = min(tokens, survey.prompts[stage.name].longest + answer)
    told, top_k = stage.algorithm, reference_top_k(stage.algorithm)
    is_compared = told.needs_reference
    group = group_bytes(told.rows_per_prompt, tokens, has_reference=is_compared, top_k=top_k)
    # One checkpoint may still be written when the next is due
    held = stage.prompts_per_step * (2 * run_file.checkpoint.every_steps - 1)
    ahead = (run_file.max_staleness(stage) + 1) * max(1.0, run_file.rollout.oversample)
    in_flight = math.ceil(stage.prompts_per_step * ahead)
    return group * (held + in_flight)


def _element_bytes(dtype: Literal["float32", "bfloat16"]) -> int:
    return 4 if dtype == "float32" else 2
