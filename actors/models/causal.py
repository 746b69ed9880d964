"""Causal language models: built on the spot from sizes, or loaded from a Hugging Face folder."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from manta.actors.models.spec import ModelSpec


def build_model(spec: ModelSpec, vocab_size: int, seed: int) -> nn.Module:
    """The model of `spec` in evaluation mode, on the CPU; initial weights follow `seed`.

    Raises ValueError where the model at `spec.path` has fewer embeddings than the tokenizer ids.
    """
    dtype = getattr(torch, spec.dtype)
    if spec.path is not None:
        model = AutoModelForCausalLM.from_pretrained(spec.path, dtype=dtype)
        if model.config.vocab_size < vocab_size:
            raise ValueError(
                f"model {spec.path!r} has {model.config.vocab_size} embeddings, its tokenizer uses "
                f"ids up to {vocab_size - 1}: choose the tokenizer that the model was made with"
            )
    else:
        assert spec.build is not None
        sizes = spec.build
        config = AutoConfig.for_model(
            sizes.architecture,
            vocab_size=vocab_size,
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp_width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads or sizes.heads,
            head_dim=sizes.width // sizes.heads,
            max_position_embeddings=spec.context,
            tie_word_embeddings=sizes.tie_embeddings,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return cast(nn.Module, model.eval())
