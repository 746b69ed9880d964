"""Which weights of a model are matrices between its embeddings and its heads.

Owns the choice alone; who treats them differently is others' business.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def hidden_matrices(model: nn.Module) -> frozenset[str]:
    """Names of the trained two-dimensional parameters of `model` and what it holds that neither
    look words up, nor score them, nor make a single number."""
    outer: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            outer.update(module.parameters(recurse=False))
        head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        if head is not None:
            outer.update(head.parameters(recurse=False))
    return frozenset(
        name
        for name, each in model.named_parameters()
        if each.requires_grad and each.ndim == 2 and min(each.shape) > 1 and each not in outer
    )
