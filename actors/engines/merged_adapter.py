"""An adapter in an engine that has no layers for one: its product is added to the weights.

Owns the weights as they are without the adapter, so that the next one replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from manta.actors.models.adapter import adapter_shapes, is_adapter, matrices
from manta.actors.models.causal import model_state
from manta.actors.models.lora import merged
from manta.actors.models.spec import LoraSpec
from manta.actors.weight_tensors import refuse_mismatch


class MergedAdapter:
    def __init__(self, model: nn.Module, lora: LoraSpec) -> None:
        """`model` serves its own weights, without an adapter, so far.

        Raises ValueError where it has no such matrices as `lora` names.
        """
        own = model_state(model)
        shapes = adapter_shapes(lora, {name: tuple(t.shape) for name, t in own.items()})
        self._lora = lora
        self._shapes = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        self._base = {name: own[name].clone() for name in matrices(shapes)}

    def whole(self, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights to serve, by name: of `own` those with the adapter `given` in them; whole
        weights are as they are, and what adapters are over from now on.

        Raises ValueError where an adapter is another model's.
        """
        if not is_adapter(given):
            self._base = {name: given.get(name, kept).clone() for name, kept in self._base.items()}
            return given
        refuse_mismatch(self._shapes, given, "this adapter does not fit the engine's model")
        return {**own, **merged(self._base, self._lora, given)}
