"""Layers of transformers that compute another way, in place.

A layer changes its class to one that has a mixin before its own: its parameters keep their names,
and `super()` is the library's way. Owns the change of class; the mixins are their files'.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def mix_in(model: nn.Module, mixin: type[nn.Module], names: Collection[str]) -> None:
    """Puts `mixin` before the class of every layer of `model` that transformers has under one of
    `names`; does nothing where that is done already."""
    mixed: dict[type[nn.Module], type[nn.Module]] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__name__ in names and kind.__module__.startswith("transformers."):
            mixed.setdefault(kind, type(kind.__name__, (mixin, kind), {}))
            module.__class__ = mixed[kind]
