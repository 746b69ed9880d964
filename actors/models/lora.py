"""A low-rank adapter over a causal language model, made by peft, trained alone, and merged.

Owns what peft is asked for and the arithmetic of merging (arXiv 2106.09685, section 4.1). How the
adapter's weights are called on their way is `manta.actors.models.adapter`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manta.actors.models.adapter import adapter_name, adapter_shapes, matrices
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.spec import LoraSpec, ModelSpec
from manta.actors.weight_tensors import refuse_mismatch
from manta.actors.weights import tree_hash

_BASE = ".base_layer"
"""What peft adds to the name of a layer that it puts an adapter over."""


def build_policy(spec: ModelSpec, vocab_size: int, seed: int) -> nn.Module:
    """What a learner trains: the model of `spec`, with its adapter over it where it has one.

    Raises ValueError as `build_model` does, and where the model has no such matrices as `spec.lora`
    names.
    """
    model = build_model(spec, vocab_size, seed)
    if spec.lora is not None:
        add_adapter(model, spec.lora, seed)
    return model


def add_adapter(model: nn.Module, lora: LoraSpec, seed: int) -> None:
    """Puts an adapter over `model`, whose own weights are frozen from now on. It changes nothing at
    first (B is zero); A follows `seed`.

    Raises ValueError where a target is none of the model's linear layers.
    """
    # Imported here: whoever has no adapter need not have peft
    from peft import LoraConfig, inject_adapter_in_model

    shapes = {name: tuple(tensor.shape) for name, tensor in model_state(model).items()}
    wanted = adapter_shapes(lora, shapes)
    config = LoraConfig(
        r=lora.rank, lora_alpha=cast(int, lora.alpha), target_modules=list(lora.targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, cast(PreTrainedModel, model))
    model.eval()
    found = {name: tuple(tensor.shape) for name, tensor in model_state(model).items()}
    if found != wanted:
        differing = sorted(n for n in wanted | found if wanted.get(n) != found.get(n))
        raise ValueError(
            f"model.lora.targets: peft makes no adapter of ours at {differing[:3]}: name linear "
            "layers of the model alone"
        )


def merge_adapter(model: nn.Module, lora: LoraSpec, adapter: Mapping[str, Tensor]) -> None:
    """Adds `adapter` to the weights of `model`, which has none over it: W + alpha / rank * B A, in
    float32 and then in the model's dtype.

    Raises ValueError where it is none of this model's.
    """
    own = model_state(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    expected = {
        name: torch.empty(s, device="meta") for name, s in adapter_shapes(lora, shapes).items()
    }
    refuse_mismatch(expected, adapter, "this is another model's adapter")
    for name, weight in merged(own, lora, adapter).items():
        own[name].copy_(weight)


def merged(
    base: Mapping[str, Tensor], lora: LoraSpec, adapter: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """float32 weights, by name in `base`, of the matrices that `adapter` changes."""
    changed = {}
    for name, (a_name, b_name) in matrices(adapter).items():
        product = adapter[b_name].float() @ adapter[a_name].float()
        changed[name] = base[name].float() + lora.alpha / lora.rank * product
    return changed


def base_hash(model: nn.Module) -> str | None:
    """The hash of the weights that the adapter of `model` is over; None where it has none."""
    is_adapted = any(adapter_name(name) for name, _ in model.named_parameters())
    return weights_hash(model) if is_adapted else None


def weights_hash(model: nn.Module) -> str:
    """The hash of the model's own weights, equal with an adapter over them and without."""
    frozen = {
        name.replace(_BASE, ""): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if adapter_name(name) is None
    }
    names = sorted(frozen)
    head = repr([(n, str(frozen[n].dtype), tuple(frozen[n].shape)) for n in names]).encode()
    return tree_hash(head, *(frozen[n].reshape(-1).view(torch.uint8).numpy() for n in names))
