"""Statistics of trained tokens against a plain forward pass with all logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manta.actors.models.policy import evaluate, evaluate_in_batches
from manta.actors.rows import Row
from tiny import tiny_model, tiny_rows


def plainly(model: nn.Module, rows: list[Row], temperature: float) -> dict[str, Tensor]:
    """Row by row, all positions, all logits, no padding."""
    logprobs, entropies = [], []
    for row in rows:
        ids = torch.from_numpy(row.token_ids.astype(np.int64))
        logp_LV = torch.log_softmax(model(ids[None]).logits[0].float() / temperature, -1)
        places = torch.from_numpy(row.loss_mask.nonzero()[0])
        logprobs.append(logp_LV[places - 1, ids[places]])
        entropies.append(-(logp_LV[places - 1].exp() * logp_LV[places - 1]).sum(-1))
    return {"logprob": torch.cat(logprobs), "entropy": torch.cat(entropies)}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [True, False])
def test_statistics_equal_a_plain_forward(temperature: float, tied: bool) -> None:
    model, rows = tiny_model(tied=tied), tiny_rows()
    found = evaluate(model, rows, ("logprob", "entropy"), temperature)
    expected = plainly(model, rows, temperature)
    assert len(found["logprob"]) == sum(row.num_tokens for row in rows)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_those_of_a_plain_forward(tied: bool) -> None:
    rows = tiny_rows()
    factors = torch.randn(2, sum(row.num_tokens for row in rows))
    gradients = []
    for way in ("gathered", "plain"):
        model = tiny_model(tied=tied)
        if way == "gathered":
            stats = evaluate(model, rows, ("logprob", "entropy"), 0.8)
        else:
            stats = plainly(model, rows, 0.8)
        (stats["logprob"] @ factors[0] + stats["entropy"] @ factors[1]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    scale = gradients[1].abs().max()
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [1, 50, 10_000])
def test_batches_give_results_in_row_order(budget: int) -> None:
    model, rows = tiny_model(), tiny_rows((5, 4))
    found = evaluate_in_batches(model, rows, ("logprob", "entropy"), 1.0, budget)
    expected = evaluate(model, rows, ("logprob", "entropy"), 1.0)
    for name in ("logprob", "entropy"):
        assert not found[name].requires_grad
        torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-6, atol=1e-6)


def test_the_first_token_of_a_row_cannot_be_trained() -> None:
    row = tiny_rows()[0]
    broken = replace(row, loss_mask=np.ones_like(row.loss_mask))
    with pytest.raises(ValueError, match="row 0: its first token"):
        evaluate(tiny_model(), [broken], ("logprob",), 1.0)


def test_a_model_that_transforms_logits_is_refused() -> None:
    model = tiny_model()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        evaluate(model, tiny_rows(), ("logprob",), 1.0)


def test_rows_without_trained_tokens_give_nothing() -> None:
    row = tiny_rows()[0]
    silent = replace(row, loss_mask=np.zeros_like(row.loss_mask))
    assert evaluate(tiny_model(), [silent], ("logprob",), 1.0)["logprob"].shape == (0,)
