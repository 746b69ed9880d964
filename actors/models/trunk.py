"""What a model beside the policy is made of: a whole causal language model, or its trunk, which is
all of it but its head.

Owns where such a model starts from. What is put on a trunk is the critic's and the reward model's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch import nn

from manta.actors.models.causal import build_model, load_state, model_state
from manta.actors.models.spec import ModelSpec


def trunk(model: nn.Module) -> nn.Module:
    return cast(nn.Module, model.base_model)


def width(model: nn.Module) -> int:
    return cast(int, model.config.hidden_size)  # type: ignore[union-attr]


def own_trunk(path: str | None, spec: ModelSpec, vocab_size: int, policy: nn.Module) -> nn.Module:
    """A trunk of its own: that of the model at `path`, or a copy of that of `policy`, a model of
    `spec`, as it is now.

    Raises ValueError where the model at `path` does not go with the tokenizer.
    """
    body = trunk(_built(path, spec, vocab_size))
    if path is None:
        load_state(body, model_state(trunk(policy)))
    return body


def own_model(path: str | None, spec: ModelSpec, vocab_size: int, policy: nn.Module) -> nn.Module:
    """As `own_trunk`, with the head."""
    model = _built(path, spec, vocab_size)
    if path is None:
        load_state(model, model_state(policy))
    return model


def _built(path: str | None, spec: ModelSpec, vocab_size: int) -> nn.Module:
    if path is not None:
        spec = replace(spec, path=path, build=None)
    return build_model(replace(spec, lora=None), vocab_size, seed=0)
