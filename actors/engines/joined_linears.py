"""Linear layers that read one input, as one product.

A decoding step multiplies few rows, so that starting a product costs as much as computing it. Owns
which layers go together and where their weights lie; parameters and their names stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from manta.actors.models.products import linear

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_linears(model: nn.Module) -> None:
    """Joins the layers of `model` that are children of one module, have these names and read inputs
    of one width. Their weights become views of one matrix."""
    for module in list(model.modules()):
        for names in _TOGETHER:
            layers = [child for name, child in module.named_children() if name in names]
            if len(layers) == len(names) and _fit(layers):
                _Joined(cast(Sequence[nn.Linear], layers))


def part_linears(model: nn.Module) -> None:
    """Undoes `join_linears`, so that parameters may get other memory."""
    for module in model.modules():
        if isinstance(module, JoinedLinear):
            del module.joined
            module.__class__ = nn.Linear  # type: ignore[assignment]


def _fit(layers: Sequence[nn.Module]) -> bool:
    """Plain linear layers, all with a bias or none."""
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    shapes = {(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in linears}
    return len(linears) == len(layers) and len(shapes) == 1


class _Joined:
    """`layers`, whose outputs lie side by side: computed for the first that is called with an
    input, and kept until the others have been called with it."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._sizes = [layer.out_features for layer in layers]
        self._weight_ND = _joined([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias_N = _joined(biases) if biases else None
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        for place, layer in enumerate(layers):
            layer.__class__ = JoinedLinear
            cast(JoinedLinear, layer).joined = (self, place)

    def output(self, place: int, input_XD: Tensor) -> Tensor:
        if self._input is not input_XD or place not in self._outputs:
            output_XN = linear(input_XD, self._weight_ND, self._bias_N)
            self._outputs = dict(enumerate(torch.split(output_XN, self._sizes, dim=-1)))
            self._input = input_XD
        found = self._outputs.pop(place)
        if not self._outputs:
            self._input = None
        return found


class JoinedLinear(nn.Linear):
    """What `join_linears` turns layers into. For inference: no gradients reach the parameters."""

    joined: tuple[_Joined, int]

    def forward(self, input: Tensor) -> Tensor:
        joined, place = self.joined
        return joined.output(place, input)


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor, of which each of `parameters` becomes a view."""
    joined = torch.cat([parameter.detach() for parameter in parameters])
    parts = torch.split(joined, [len(parameter) for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    return joined
