"""Causal language models: built on the spot from sizes, or loaded from a Hugging Face folder.

Owns construction and the named parameters. How a model is evaluated on rows is in
`manta.actors.models.policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from manta.actors.models.adapter import adapter_name
from manta.actors.models.norms import merge_norms
from manta.actors.models.products import widen_linears
from manta.actors.models.rotary import merge_rotary
from manta.actors.models.spec import ModelSpec
from manta.actors.weight_tensors import refuse_mismatch


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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(model_config(spec, vocab_size), dtype=dtype)
    merge_layers(model)
    return cast(nn.Module, model.eval())


def merge_layers(model: nn.Module) -> None:
    """Makes the layers of `model` compute in Manta's faster ways, where they are known."""
    widen_linears(model)
    merge_norms(model)
    merge_rotary(model)


def model_config(spec: ModelSpec, vocab_size: int) -> PreTrainedConfig:
    """transformers' configuration of the model of `spec`: the one at its path, or of its sizes."""
    if spec.path is not None:
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(spec.path))
    assert spec.build is not None
    fields = spec.build.config(vocab_size, spec.context)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return cast(PreTrainedConfig, config)


def attention_tokens(model: nn.Module) -> int:
    """Over how many tokens attention costs a token as much as the rest of `model` does.

    Of L tokens of a row, causal attention takes 2 L^2 Q S floating-point operations in S layers
    with queries of Q numbers, the P parameters that are no embeddings 2 P L: equal at L = P / Q S.
    """
    config = cast(PreTrainedModel, model).config
    heads, width = config.num_attention_heads, config.hidden_size
    queries = heads * (getattr(config, "head_dim", None) or width // heads)
    embedded = model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    count = sum(parameter.numel() for parameter in model.parameters()) - embedded
    return max(1, int(count // (queries * config.num_hidden_layers)))


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The named tensors that learners publish and engines take: the model's own parameters.

    Tied parameters count once, under the first of their names (`model.embed_tokens.weight`, not
    `lm_head.weight`), so both sides of a publish agree on names and no byte travels twice. Buffers
    are left out: they follow from the config. The tensors are the live ones, not copies. Of a model
    with an adapter over it they are the adapter's alone, by their published names.
    """
    own = {name: p.detach() for name, p in model.named_parameters()}
    named = {adapter_name(name): tensor for name, tensor in own.items()}
    return {name: tensor for name, tensor in named.items() if name is not None} or own


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies `state` into the parameters of `model`, cast to their dtype.

    Raises ValueError naming the first tensor that does not belong; nothing is changed then.
    """
    own = model_state(model)
    refuse_mismatch(own, state)
    for name, parameter in own.items():
        parameter.copy_(state[name])
