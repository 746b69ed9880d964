"""A model that is built on the spot, as a Hugging Face folder, written without transformers.

Owns the config that such a folder has: what `manta.actors.models.causal` builds a model from, said
as transformers reads it. A driver that writes a product spares itself loading the library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.envs.records import Json

_CLASSES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


def write_built(
    spec: ModelSpec, vocab_size: int, tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """`tensors` are the model's own parameters, tied ones once, in any dtype; written in that of
    the model. `spec` has sizes to build from, and no adapter."""
    assert spec.build is not None and spec.lora is None
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(spec, spec.build, vocab_size)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    dtype = getattr(torch, spec.dtype)
    cast = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(cast, folder / "model.safetensors", {"format": "pt"})


def _config(spec: ModelSpec, sizes: BuildSpec, vocab_size: int) -> dict[str, Json]:
    return {
        "architectures": [_CLASSES[sizes.architecture]],
        "model_type": sizes.architecture,
        "dtype": spec.dtype,
        "vocab_size": vocab_size,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp_width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads or sizes.heads,
        "head_dim": sizes.width // sizes.heads,
        "max_position_embeddings": spec.context,
        "tie_word_embeddings": sizes.tie_embeddings,
    }
