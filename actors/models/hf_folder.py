"""A model that is built on the spot, as a Hugging Face folder, written without transformers.

A driver that writes a product spares itself loading the library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from manta.actors.models.spec import ModelSpec

_CLASSES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


def write_built(
    spec: ModelSpec, vocab_size: int, tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """`tensors` are the model's own parameters, tied ones once, in any dtype; written in that of
    the model. `spec` has sizes to build from, and no adapter."""
    assert spec.build is not None and spec.lora is None
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [_CLASSES[spec.build.architecture]],
        "dtype": spec.dtype,
        **spec.build.config(vocab_size, spec.context),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    dtype = getattr(torch, spec.dtype)
    cast = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(cast, folder / "model.safetensors", {"format": "pt"})
