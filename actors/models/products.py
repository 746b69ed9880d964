"""Matrix products of linear layers, through oneDNN where it uses wider vectors than torch's choice.

For float32 on a CPU torch calls MKL, which on AMD processors computes with 256-bit vectors also
where 512-bit ones exist; oneDNN, which torch carries too, uses them (2.2 times the speed of the
forward product, 1.4 to 1.8 times of the weight gradient's). Elsewhere everything stays as torch
does it. Results differ by rounding only.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEWEST_ROWS = 16
"""Below this MKL starts faster."""
MANY_ROWS = 512
_COARSE, _FINE = 32, 16
"""Numbers of rows are rounded up to a multiple: of the former where there are `MANY_ROWS`."""


def linear(input_XD: Tensor, weight_ND: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """`input @ weight.T + bias`, [..., N], with gradients."""
    if not _goes_wide(input_XD):
        return functional.linear(input_XD, weight_ND, bias_N)
    if not torch.is_grad_enabled():
        return _wide(input_XD, weight_ND, bias_N)
    return cast(Tensor, WideLinear.apply(input_XD, weight_ND, bias_N))  # type: ignore[no-untyped-call]


def times(left_MN: Tensor, right_ND: Tensor) -> Tensor:
    """`left @ right`, [M, D]; no gradients flow."""
    return _wide(left_MN, right_ND.t()) if _goes_wide(left_MN) else left_MN @ right_ND


def transposed_times(left_MN: Tensor, right_MD: Tensor) -> Tensor:
    """`left.T @ right`, [N, D]; no gradients flow. It may be a transposed view."""
    if not _goes_wide(left_MN):
        return left_MN.t() @ right_MD
    left_MN, right_MD = filled(left_MN), filled(right_MD)
    # oneDNN is faster with the longer side as rows.
    if left_MN.shape[1] > right_MD.shape[1]:
        return _wide(right_MD.t(), left_MN.t()).t()
    return _wide(left_MN.t(), right_MD.t())


def widen_linears(model: nn.Module) -> None:
    """Makes the linear layers of `model` use `linear`, where that makes a difference."""
    if is_wide():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = LinearLayer


@cache
def is_wide() -> bool:
    """Whether this machine is one where oneDNN beats torch's choice."""
    cpuinfo = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and cpuinfo.exists()
        and "AuthenticAMD" in cpuinfo.read_text()
    )


def _goes_wide(tensor: Tensor) -> bool:
    """Whether a product with these rows, [..., D], is one that oneDNN does faster."""
    return (
        is_wide()
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and tensor.numel() >= _FEWEST_ROWS * tensor.shape[-1]
    )


def _wide(input_XD: Tensor, weight_ND: Tensor, bias_N: Tensor | None = None) -> Tensor:
    rows_MD = input_XD.reshape(-1, input_XD.shape[-1])
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        filled(rows_MD), weight_ND, bias_N, "none", [], ""
    )
    return product[: len(rows_MD)].view(*input_XD.shape[:-1], len(weight_ND))


def filled(rows_MD: Tensor) -> Tensor:
    """With rows of zeros behind them, up to a size that others have too: oneDNN makes a kernel for
    each, which takes as long as a product of a thousand rows of width 128, and keeps many."""
    missing = missing_rows(len(rows_MD))
    return functional.pad(rows_MD, (0, 0, 0, missing)) if missing else rows_MD


def missing_rows(count: int) -> int:
    """How many rows `filled` puts behind so many."""
    return -count % (_COARSE if count >= MANY_ROWS else _FINE)


class LinearLayer(nn.Linear):
    """What `widen_linears` turns layers into; parameters and their names stay."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class WideLinear(torch.autograd.Function):
    """`input @ weight.T + bias` in oneDNN, float32 on the CPU; the backward as above."""

    @staticmethod
    def forward(ctx: Any, input_XD: Tensor, weight_ND: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_XD, weight_ND)
        return _wide(input_XD, weight_ND, bias_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input_XD, weight_ND = ctx.saved_tensors
        (by_output_XN,) = gradients
        by_output_MN = by_output_XN.reshape(-1, by_output_XN.shape[-1])
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        input_MD = input_XD.reshape(-1, input_XD.shape[-1])
        return (
            times(by_output_MN, weight_ND).view(input_XD.shape) if needs_input else None,
            transposed_times(by_output_MN, input_MD) if needs_weight else None,
            by_output_MN.sum(0) if needs_bias else None,
        )
