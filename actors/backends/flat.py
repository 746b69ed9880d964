"""Flat float32 master weights and gradients that the parameters of a model are views of.

One buffer each makes the all-reduce, the norm, the clipping and the optimizer step one operation.
It knows nothing of optimizers, losses or files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_ALIGNMENT = 16
"""Elements: every parameter starts on a 64-byte border, where matrix products like to start."""

_NORM_ELEMENTS = 1 << 10
"""Elements whose squares are added up in float32, before these sums are in float64: as exact as
float64 from the start, to nine digits, without a copy in float64 and ten times as fast."""


_COLLECTORS = WeakIdKeyDictionary()
"""The collector of every parameter that has one: parameters go from one stage's backend to the
next one's, and an earlier collector would take the gradient away before the new one sees it."""


def _collect_with(parameter: nn.Parameter, collector: Callable[[Tensor], None]) -> None:
    if parameter in _COLLECTORS:
        _COLLECTORS[parameter].remove()
    handle = parameter.register_post_accumulate_grad_hook(collector)  # type: ignore[no-untyped-call]
    _COLLECTORS[parameter] = handle


class FlatParameters:
    """The trainable parameters of `model`: those named in `first`, which are matrices, then all
    other matrices, then vectors and scalars.

    `master` and `gradient` are float32[P] (gaps are zeros). `leading` are the master's views that
    are `first`, by name, which end at element `border`; `decayed` and `undecayed` are the two parts
    behind them. Each has the gradient's part as its `.grad`. float32 parameters become views of the
    master; others stay copies, refreshed by `publish`.
    """

    def __init__(self, model: nn.Module, first: Collection[str] = ()) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameters: nothing to learn")
        named.sort(key=lambda item: (item[0] not in first, item[1].ndim < 2))
        self._parameters = dict(named)
        self._places: dict[str, tuple[int, int]] = {}
        end = border = self.border = 0
        for name, parameter in named:
            self._places[name] = (end, end + parameter.numel())
            end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
            border = end if parameter.ndim >= 2 else border
            self.border = end if name in first else self.border
        device = named[0][1].device
        self.master = torch.zeros(end, device=device)
        self.gradient = torch.zeros(end, device=device)
        self.decayed, self.undecayed = self.master[self.border : border], self.master[border:]
        self.decayed.grad = self.gradient[self.border : border]
        self.undecayed.grad = self.gradient[border:]
        self.leading = {name: self.view(self.master, name) for name, _ in named if name in first}
        for name, part in self.leading.items():
            part.grad = self.view(self.gradient, name)
        for name, parameter in named:
            self.view(self.master, name).copy_(parameter.detach())
            if parameter.dtype == torch.float32:
                parameter.data = self.view(self.master, name)
            else:
                _collect_with(parameter, self._collector(name))

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def view(self, flat: Tensor, name: str, first: int = 0) -> Tensor:
        """The part of `flat` that belongs to parameter `name`, in its shape; `flat` is any float[P]
        without its elements before `first`."""
        start, end = self._places[name]
        return flat[start - first : end - first].view(self._parameters[name].shape)

    def zero_gradient(self) -> None:
        self.gradient.zero_()
        for name, parameter in self._parameters.items():
            is_view = parameter.dtype == torch.float32
            parameter.grad = self.view(self.gradient, name) if is_view else None

    def sum_gradient(self, group: dist.ProcessGroup) -> None:
        """Sums the gradient over the ranks of `group`, equal to the bit on all of them."""
        dist.all_reduce(self.gradient, dist.ReduceOp.SUM, group=group)

    def clip(self, max_norm: float) -> float:
        """Scales the gradient down to `max_norm` (0: never) and returns its norm before that, to
        nine digits: added up in float32 millions of squares lose digits."""
        rows = len(self.gradient) // _NORM_ELEMENTS
        whole, rest = self.gradient.tensor_split([rows * _NORM_ELEMENTS])
        norms = torch.linalg.vector_norm(whole.view(rows, _NORM_ELEMENTS), dim=1)
        norms = torch.cat([norms, torch.linalg.vector_norm(rest)[None]])
        norm = float(torch.linalg.vector_norm(norms, dtype=torch.float64))
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
