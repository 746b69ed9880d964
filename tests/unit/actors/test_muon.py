"""The optimizer `muon`: what it steps, by how much, and that it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from manta.actors.backends.flat import FlatParameters
from manta.actors.backends.optimizer import FlatOptimizer
from manta.actors.backends.registry import build_backend
from manta.actors.backends.settings import BACKEND_NAMES, WHOLE_MATRICES, LearnerSettings
from manta.actors.backends.torch_optimizer import MUON_MOMENTUM
from manta.actors.models.critic import Critic
from manta.actors.models.hidden_matrices import hidden_matrices
from manta.actors.models.lora import add_adapter
from manta.actors.models.spec import LoraSpec
from manta.actors.weight_tensors import unpack
from tests.contract.backend_kinds import settings_of
from tests.contract.test_backend import SIZES, VERSION, PolicyGradient, train
from tiny import tiny_model, tiny_rows

ROWS = tiny_rows(SIZES)
RATE, DECAY = 1e-2, 0.3
BFLOAT16 = 2e-2
"""Relative: five products of three matrices, each rounded to eight bits."""
OF_A_LAYER = {
    *(f"self_attn.{kind}_proj" for kind in "qkvo"),
    *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
}


def moved(optimizer: str, updates: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before and after."""
    settings = settings_of("plain", optimizer=optimizer, clip_norm=0.0, weight_decay=DECAY)
    backend = build_backend(settings, tiny_model(tied=False))
    before = {name: each.clone() for name, each in unpack(backend.weights(VERSION)).items()}
    for _ in range(updates):
        backend.update([ROWS], ("logprob", "entropy"), 0.9, PolicyGradient(ROWS), RATE)
    return before, unpack(backend.weights(VERSION))


def orthogonal(matrix: Tensor) -> Tensor:
    """Five steps of s <- 3.4445 s - 4.775 s^3 + 2.0315 s^5 on singular values, in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return (left * values) @ right


def test_hidden_matrices_are_those_of_layers_alone() -> None:
    wanted = {f"model.layers.{i}.{name}.weight" for i in range(2) for name in OF_A_LAYER}
    for tied in (True, False):
        assert hidden_matrices(tiny_model(tied=tied)) == wanted
    body = tiny_model().base_model
    assert len(hidden_matrices(Critic(16, body))) == len(wanted), "no head that makes one number"
    adapted = tiny_model()
    add_adapter(adapted, LoraSpec(rank=2, targets=("q_proj",)), 0)
    assert {name.rpartition("q_proj.")[2] for name in hidden_matrices(adapted)} == {
        "lora_A.default.weight",
        "lora_B.default.weight",
    }


def test_updates_by_hand_of_a_matrix_and_by_adamw_of_a_vector() -> None:
    """Of gradients with known, and not too different, singular values: small ones drown in
    bfloat16."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(rows, 16, generator=generator)).Q for rows in (16, 24)
    )
    linear = nn.Linear(24, 16)
    bias = nn.Parameter(linear.bias.detach().clone())
    adamw = torch.optim.AdamW([bias], lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    flat = FlatParameters(linear, ["weight"])
    settings = LearnerSettings(optimizer="muon", weight_decay=DECAY)
    optimizer = FlatOptimizer(settings, flat)
    momentum = torch.zeros(16, 24)
    for _ in range(3):
        values = 0.5 + torch.rand(16, generator=generator) / 2
        gradient = (left * values) @ right.T
        momentum = MUON_MOMENTUM * momentum + (1 - MUON_MOMENTUM) * gradient
        ahead = MUON_MOMENTUM * momentum + (1 - MUON_MOMENTUM) * gradient
        before = linear.weight.detach().double()
        flat.view(flat.gradient, "weight").copy_(gradient)
        bias.grad = torch.randn(16, generator=generator)
        flat.view(flat.gradient, "bias").copy_(bias.grad)
        optimizer.step(RATE)
        adamw.step()
        step = RATE * (0.2 * 24**0.5 * orthogonal(ahead) + DECAY * before)
        found = before - linear.weight.detach().double()
        assert float((found - step).norm() / step.norm()) < BFLOAT16
        torch.testing.assert_close(linear.bias, bias, rtol=1e-6, atol=1e-7)


def test_what_is_no_hidden_matrix_moves_as_by_adamw() -> None:
    before, after = moved("muon")
    _, adamw = moved("adamw")
    hidden = hidden_matrices(tiny_model(tied=False))
    for name, start in before.items():
        if name not in hidden:
            assert torch.equal(after[name], adamw[name])
            continue
        rms = float((start - after[name] - RATE * DECAY * start).square().mean().sqrt())
        assert 0.05 * RATE < rms < 0.3 * RATE, "as large as AdamW's, 0.2 to 0.4 of the rate"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_is_bit_exact(dtype: str, tmp_path: Path) -> None:
    settings = settings_of("plain", optimizer="muon", weight_decay=0.1)
    loss = PolicyGradient(ROWS)
    through = build_backend(settings, tiny_model(dtype=dtype))
    train(through, ROWS, loss, 60, 3)
    through.save(tmp_path)
    train(through, ROWS, loss, 60, 3)
    resumed = build_backend(settings, tiny_model(seed=1, dtype=dtype))
    resumed.load(tmp_path)
    train(resumed, ROWS, loss, 60, 3)
    assert through.weights(VERSION).sha256 == resumed.weights(VERSION).sha256
    with pytest.raises(ValueError, match="written with optimizer 'muon'"):
        build_backend(settings_of("plain"), tiny_model()).load(tmp_path)


def test_an_update_that_is_skipped_leaves_no_trace() -> None:
    settings = settings_of("plain", optimizer="muon")
    through, disturbed = (build_backend(settings, tiny_model()) for _ in "12")
    for backend in (through, disturbed):
        train(backend, ROWS, PolicyGradient(ROWS), 60, 2)
    assert train(disturbed, ROWS, PolicyGradient(ROWS, float("nan")), 60, 1)["skipped_updates"] == 1
    for backend in (through, disturbed):
        train(backend, ROWS, PolicyGradient(ROWS), 60, 2)
    assert through.weights(VERSION).sha256 == disturbed.weights(VERSION).sha256


@pytest.mark.parametrize("backend", sorted(set(BACKEND_NAMES) - set(WHOLE_MATRICES)))
def test_a_backend_that_cuts_matrices_refuses_it(backend: str) -> None:
    with pytest.raises(ValueError, match=f"makes whole matrices orthogonal.*{backend} shares them"):
        build_backend(settings_of(backend, optimizer="muon"), tiny_model())
