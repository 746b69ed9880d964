from __future__ import annotations

import torch
from torch import Tensor, nn

from manta.actors.engines.joined_linears import JoinedLinear, join_linears, part_linears
from manta.actors.models.causal import model_state
from tiny import tiny_model

TOKENS = torch.randint(0, 11, (20, 3), generator=torch.Generator().manual_seed(0))


class Layers(nn.Module):
    """Layers that are joined, and one that is not."""

    def __init__(self, biases: tuple[bool, bool] = (False, False)) -> None:
        super().__init__()
        self.up_proj = nn.Linear(4, 6, bias=biases[0])
        self.gate_proj = nn.Linear(4, 5, bias=biases[1])
        self.down_proj = nn.Linear(4, 3)


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


def test_a_joined_model_computes_the_same_and_keeps_its_parameters() -> None:
    model = tiny_model()
    before, state = logits(model), {n: p.clone() for n, p in model_state(model).items()}
    join_linears(model)
    layers = [module for module in model.modules() if isinstance(module, JoinedLinear)]
    assert len(layers) == 5 * model.config.num_hidden_layers
    assert torch.allclose(logits(model), before, atol=1e-6)
    assert {name: p.shape for name, p in model_state(model).items()} == {
        name: p.shape for name, p in state.items()
    }
    assert all(torch.equal(p, state[name]) for name, p in model_state(model).items())


def test_new_weights_in_place_are_what_is_computed_with() -> None:
    model, other = tiny_model(0), tiny_model(1)
    join_linears(model)
    for name, tensor in model_state(model).items():
        tensor.copy_(model_state(other)[name])
    assert torch.allclose(logits(model), logits(other), atol=1e-6)


def test_other_memory_after_parting() -> None:
    model = tiny_model()
    before = logits(model)
    join_linears(model)
    part_linears(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    join_linears(model)
    assert torch.allclose(logits(model), before, atol=1e-6)


def test_each_input_gets_its_own_outputs_in_any_order() -> None:
    module = Layers()
    first, second = torch.randn(2, 7, 4)
    wanted = [module.gate_proj(first), module.up_proj(second), module.gate_proj(second)]
    join_linears(module)
    assert not isinstance(module.down_proj, JoinedLinear)
    with torch.no_grad():
        found = [module.gate_proj(first), module.up_proj(second), module.gate_proj(second)]
        again = [module.gate_proj(second), module.up_proj(second)]
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert torch.equal(again[0], found[2]) and torch.equal(again[1], found[1])


def test_layers_that_differ_stay_apart() -> None:
    module = Layers((True, False))
    join_linears(module)
    assert not any(isinstance(child, JoinedLinear) for child in module.children())
