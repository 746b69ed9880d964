"""The number format that a learner multiplies in.

Weights that learn are float32 whatever it is (`manta.actors.backends.flat`), and what engines get
is in the model's own `dtype`. The probe that compares engine and learner does not go through here:
it computes in that dtype on both sides.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from manta.actors.backends.settings import Precision


def computing(model: nn.Module, precision: Precision) -> AbstractContextManager[object]:
    """What a forward pass of `model` is to run in: `auto` is the format of its parameters; `bf16`
    is autocast where those are float32, and nothing to do where they are bfloat16.

    Raises ValueError for `fp32` with a model that is not, and for `bf16` on a CPU that has no
    instructions for it.
    """
    parameter = next(model.parameters())
    if precision == "fp32" and parameter.dtype != torch.float32:
        raise ValueError(
            f"learner.precision is fp32, the model's weights are {parameter.dtype}: set "
            "model.dtype: float32, or leave precision at auto"
        )
    if precision != "bf16" or parameter.dtype == torch.bfloat16:
        return nullcontext()
    if parameter.device.type == "cpu" and not has_fast_bfloat16():
        raise ValueError(
            "learner.precision is bf16, and this CPU has neither AMX nor AVX512-BF16: it would be "
            "slower than float32; set fp32 or auto"
        )
    return torch.autocast(parameter.device.type, torch.bfloat16)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by instructions made for it."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
