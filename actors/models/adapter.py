"""Names and shapes of a low-rank adapter's weights, as peft writes them and learners publish them.

Owns the naming alone: no torch, no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from manta.actors.models.spec import LoraSpec

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_WEIGHT = ".weight"
_ADAPTER = "default"
"""What peft calls an adapter that nobody has named."""


def is_adapter(names: Iterable[str]) -> bool:
    """Are these the names of an adapter's weights, and of nothing else?"""
    given = list(names)
    return bool(given) and all(name.endswith((_A, _B)) for name in given)


def adapter_name(parameter: str) -> str | None:
    """What the weights in `parameter` of a model that peft has put an adapter over are published
    as; None where they are the model's own."""
    for ending in (_A, _B):
        own = ending.replace(_WEIGHT, f".{_ADAPTER}{_WEIGHT}")
        if parameter.endswith(own):
            return f"{_PREFIX}{parameter.removesuffix(own)}{ending}"
    return None


def matrices(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The model's weights that an adapter changes, by name, with the names of its A and B."""
    modules = [name.removesuffix(_A) for name in names if name.endswith(_A)]
    return {
        f"{module.removeprefix(_PREFIX)}{_WEIGHT}": (f"{module}{_A}", f"{module}{_B}")
        for module in modules
    }


def adapter_shapes(
    lora: LoraSpec, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's weights over a model with the tensors `shapes`, by name: A
    [rank, inputs] and B [outputs, rank] of every matrix of a target.

    Raises ValueError where a target is none of the model's matrices.
    """
    found: dict[str, tuple[int, ...]] = {}
    missing = set(lora.targets)
    for name, shape in shapes.items():
        module = name.removesuffix(_WEIGHT)
        target = module.rpartition(".")[2]
        if module == name or target not in lora.targets or len(shape) != 2:
            continue
        missing.discard(target)
        outputs, inputs = shape
        found[f"{_PREFIX}{module}{_A}"] = (lora.rank, inputs)
        found[f"{_PREFIX}{module}{_B}"] = (outputs, lora.rank)
    if missing:
        known = {n.removesuffix(_WEIGHT).rpartition(".")[2] for n, s in shapes.items()
                 if n.endswith(_WEIGHT) and len(s) == 2}  # fmt: skip
        raise ValueError(
            f"model.lora.targets: the model has no matrix called {sorted(missing)}: choose from "
            f"{sorted(known)}"
        )
    return found
