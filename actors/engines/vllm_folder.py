"""The model as vLLM loads it: a folder, or a hub name, and what must be known of it beforehand.

Owns writing a model that is built on the spot, and the names and shapes that a load must bring. How
vLLM is started on it is `manta.actors.engines.vllm_start`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from manta.actors.engines.kv_memory import KeyValueShape
from manta.actors.models.adapter import adapter_shapes
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.spec import LoraSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """`shapes` are those of the tensors of an adapter of `lora`, by name."""

    lora: LoraSpec
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`name` is what vLLM's `model` argument takes. `shapes` are those of the tensors that learners
    publish, by name; `positions` is how many tokens the config allows, if it says so; `kv` is None
    where the config has no plain keys and values, `adapter` where learners publish none."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    positions: int | None
    kv: KeyValueShape | None
    adapter: ServedAdapter | None = None


def served_model(spec: ModelSpec, vocab_size: int, seed: int, folder: Path) -> ServedModel:
    """The model of `spec`; one that is built is written into `folder` with its initial weights.

    Raises ValueError where the model was made for less than `spec.context` tokens, or has no such
    matrices as `spec.lora` names.
    """
    if spec.path is None:
        model = cast(PreTrainedModel, build_model(spec, vocab_size, seed))
        model.save_pretrained(folder)
        name = str(folder)
    else:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(spec.path))
        name = spec.path
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < spec.context:
        raise ValueError(
            f"model.context is {spec.context:,}, the model {name!r} was made for at most "
            f"{positions:,}: lower model.context"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model_state(model).items()}
    adapter = None
    if spec.lora is not None:
        adapter = ServedAdapter(spec.lora, adapter_shapes(spec.lora, shapes))
    return ServedModel(name, shapes, positions, _kv_shape(config, spec.dtype), adapter)


def _kv_shape(config: PretrainedConfig, dtype: str) -> KeyValueShape | None:
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    if heads is None or layers is None or hasattr(config, "kv_lora_rank"):
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return KeyValueShape(layers, kv_heads, size, getattr(torch, dtype).itemsize)
