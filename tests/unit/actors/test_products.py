"""Linear layers through oneDNN against torch's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from manta.actors.models.products import (
    LinearLayer,
    WideLinear,
    filled,
    linear,
    times,
    transposed_times,
    widen_linears,
)

SHAPES = [
    *(((3, 5), 4), ((2, 40, 24), 7), ((2, 40, 7), 24), ((1, 16, 8), 8)),
    *(((2, 41, 24), 7), ((1, 17, 8), 24), ((530, 8), 8)),
]


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize(("shape", "width"), SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("way", [linear, WideLinear.apply])
def test_values_and_gradients(way, with_bias: bool, shape: tuple[int, ...], width: int) -> None:  # type: ignore[no-untyped-def]
    if way is not linear and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(width, shape[-1]), torch.randn(width)]
    inputs = [tensor.requires_grad_() for tensor in inputs[: 3 if with_bias else 2]]
    padded = inputs if with_bias else [*inputs, None]
    found, wanted = way(*padded), functional.linear(*padded)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradients(found, inputs), gradients(wanted, inputs), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("rows", "left", "right"), [(3, 4, 5), (64, 24, 8), (64, 8, 24), (61, 24, 8), (61, 8, 24)]
)
def test_products_of_gradients(rows: int, left: int, right: int) -> None:
    a, b, c = torch.randn(rows, left), torch.randn(left, right), torch.randn(rows, right)
    torch.testing.assert_close(times(a, b), a @ b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(transposed_times(a, c), a.T @ c, rtol=1e-5, atol=1e-5)


def test_a_widened_model_keeps_its_names_values_and_copies() -> None:
    model = nn.Sequential(nn.Linear(8, 24), nn.SiLU(), nn.Linear(24, 8, bias=False))
    inputs = torch.randn(2, 16, 8)
    wanted, names = model(inputs), list(model.state_dict())
    widen_linears(model)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(twin.state_dict()) == names
        torch.testing.assert_close(twin(inputs), wanted, rtol=1e-5, atol=1e-5)


def test_a_layer_of_another_dtype_computes_in_it() -> None:
    layer = LinearLayer(8, 4).to(torch.bfloat16)
    inputs = torch.randn(32, 8, dtype=torch.bfloat16)
    assert torch.equal(layer(inputs), functional.linear(inputs, layer.weight, layer.bias))


def test_few_sizes_stand_for_all() -> None:
    sizes = {count: len(filled(torch.ones(count, 1))) for count in range(16, 2048)}
    assert len(set(sizes.values())) < 100
    assert all(count <= size <= count + 31 for count, size in sizes.items())
    assert filled(torch.ones(17, 2)).sum() == 34, "with zeros"
