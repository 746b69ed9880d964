"""Flat float32 master weights and gradients that the parameters of a model are views of.

One buffer each makes the all-reduce, the norm, the clipping and the optimizer step one operation.
It knows nothing of optimizers, losses or files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_ALIGNMENT = 16
"""Elements: every parameter starts on a 64-byte border, where matrix products like to start."""


_COLLECTORS = WeakIdKeyDictionary()
"""The collector of every parameter that has one: parameters go from one stage's backend to the
next one's, and an earlier collector would take the gradient away before the new one sees it."""


def _collect_with(parameter: nn.Parameter, collector: Callable[[Tensor], None]) -> None:
    if parameter in _COLLECTORS:
        _COLLECTORS[parameter].remove()
    handle = parameter.register_post_accumulate_grad_hook(collector)  # type: ignore[no-untyped-call]
    _COLLECTORS[parameter] = handle


class FlatParameters:
    """The trainable parameters of `model`, matrices first, then vectors and scalars.

    `master` and `gradient` are float32[P] (gaps are zeros); `decayed` and `undecayed` are the
    master's two parts, with the gradient's parts as their `.grad`. float32 parameters become views
    of the master; others stay copies, refreshed by `publish`.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameters: nothing to learn")
        named.sort(key=lambda item: item[1].ndim < 2)
        self._parameters = dict(named)
        self._places: dict[str, tuple[int, int]] = {}
        end = border = 0
        for name, parameter in named:
            self._places[name] = (end, end + parameter.numel())
            end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
            border = end if parameter.ndim >= 2 else border
        device = named[0][1].device
        self.master = torch.zeros(end, device=device)
        self.gradient = torch.zeros(end, device=device)
        self.decayed, self.undecayed = self.master[:border], self.master[border:]
        self.decayed.grad, self.undecayed.grad = self.gradient[:border], self.gradient[border:]
        for name, parameter in named:
            self.view(self.master, name).copy_(parameter.detach())
            if parameter.dtype == torch.float32:
                parameter.data = self.view(self.master, name)
            else:
                _collect_with(parameter, self._collector(name))

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part of `flat` (any float[P]) that belongs to parameter `name`, in its shape."""
        start, end = self._places[name]
        return flat[start:end].view(self._parameters[name].shape)

    def zero_gradient(self) -> None:
        self.gradient.zero_()
        for name, parameter in self._parameters.items():
            is_view = parameter.dtype == torch.float32
            parameter.grad = self.view(self.gradient, name) if is_view else None

    def sum_gradient(self, group: dist.ProcessGroup) -> None:
        """Sums the gradient over the ranks of `group`, equal to the bit on all of them."""
        dist.all_reduce(self.gradient, dist.ReduceOp.SUM, group=group)

    def clip(self, max_norm: float) -> float:
        """Scales the gradient down to `max_norm` (0: never) and returns its norm before that."""
        norm = float(torch.linalg.vector_norm(self.gradient))
        if 0 < max_norm < norm < float("inf"):
            self.gradient.mul_(max_norm / norm)
        return norm

    def publish(self) -> None:
        """Copies the master into the parameters that are not views of it."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter.dtype != torch.float32:
                    parameter.copy_(self.view(self.master, name))

    def _collector(self, name: str) -> Callable[[Tensor], None]:
        gradient = self.view(self.gradient, name)

        def collect(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient.add_(parameter.grad)
            parameter.grad = None

        return collect
