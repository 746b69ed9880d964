"""Rows in one sequence against every row alone: log-probs, gradients, and nothing leaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from manta.actors.backends.protocol import Want
from manta.actors.micro_batches import padded_batches
from manta.actors.models.layout import in_one_sequence, side_by_side
from manta.actors.models.packed_attention import PACKED, Documents, is_packable
from manta.actors.models.policy import evaluate
from manta.actors.rows import Row
from tiny import VOCABULARY, tiny_model, tiny_rows

WANTS: tuple[Want, ...] = ("logprob", "entropy")


def rows_of_lengths(lengths: Sequence[int], seed: int = 0) -> list[Row]:
    """Everything after the first token is trained; a row of one token trains nothing."""
    generator = np.random.default_rng(seed)
    return [
        Row(
            i,
            generator.integers(0, VOCABULARY, length).astype(np.int32),
            np.arange(length) > 0,
            None,
            None,
            {},
        )
        for i, length in enumerate(lengths)
    ]


def alone(model: nn.Module, rows: Sequence[Row]) -> dict[str, Tensor]:
    """One sequence a call: there is nothing to pack and nothing to pad."""
    parts = [evaluate(model, [row], WANTS, 0.9) for row in rows]
    return {name: torch.cat([part[name] for part in parts]) for name in ("logprob", "entropy")}


def gradient(model: nn.Module, found: dict[str, Tensor]) -> Tensor:
    model.zero_grad()
    steps = torch.linspace(-1, 1, len(found["logprob"]))
    ((steps * found["logprob"]).sum() + (steps**2 * found["entropy"]).sum()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


LENGTHS = {
    "mixed": (7, 3, 24, 3, 11, 3, 7, 2),
    "one token": (1, 5, 1, 2),
    "one long row": (60,),
    "one long row among short ones": (2, 60, 2, 3),
    "equal": (9, 9, 9, 9),
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_packed_rows_equal_rows_alone(lengths: tuple[int, ...]) -> None:
    model, rows = tiny_model(), rows_of_lengths(lengths)
    assert is_packable(model)
    packed = evaluate(model, rows, WANTS, 0.9)
    expected = alone(model, rows)
    for name in ("logprob", "entropy"):
        torch.testing.assert_close(packed[name], expected[name], rtol=1e-6, atol=2e-6)
    wanted = gradient(model, expected)
    found = gradient(model, evaluate(model, rows, WANTS, 0.9))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_packed_rows_equal_padded_rows() -> None:
    """With holes in what is trained, against all logits of a padded batch."""
    rows, model = tiny_rows((5, 4, 3)), tiny_model()
    layout = side_by_side(rows)
    logp_TV = torch.log_softmax(
        model(layout.tokens).logits.flatten(0, 1)[layout.positions_T] / 0.9, -1
    )
    padded = {
        "logprob": logp_TV.gather(1, layout.targets_T[:, None])[:, 0],
        "entropy": -(logp_TV.exp() * logp_TV).sum(-1),
    }
    packed = evaluate(model, rows, WANTS, 0.9)
    for name in ("logprob", "entropy"):
        torch.testing.assert_close(packed[name], padded[name], rtol=1e-6, atol=2e-6)
    wanted, found = gradient(model, padded), gradient(model, packed)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_a_row_does_not_see_its_neighbours() -> None:
    model, rows = tiny_model(), rows_of_lengths((9, 6, 3))
    before = evaluate(model, rows, ("logprob",), 1.0)["logprob"].detach()
    others = [rows[0], rows_of_lengths((9, 6, 3), seed=1)[1], rows[2]]
    after = evaluate(model, others, ("logprob",), 1.0)["logprob"].detach()
    assert torch.equal(before[:8], after[:8])
    assert torch.equal(before[13:], after[13:])
    assert not torch.allclose(before[8:13], after[8:13])


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_other_architectures_pack_too(architecture: str) -> None:
    config = AutoConfig.for_model(
        architecture,
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = rows_of_lengths((7, 3, 12, 3))
    assert is_packable(model)
    found, expected = evaluate(model, rows, WANTS, 0.9), alone(model, rows)
    torch.testing.assert_close(found["logprob"], expected["logprob"], rtol=1e-6, atol=2e-6)


def test_a_model_that_packs_still_works_by_itself() -> None:
    """Also with a padding mask, as `generate` makes one."""
    model, rows = tiny_model(), rows_of_lengths((6, 4))
    ids = torch.zeros(1, 6, dtype=torch.int64)
    ids[0] = torch.from_numpy(rows[0].token_ids)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    expected = model(ids).logits, model(ids, attention_mask=mask).logits
    evaluate(model, rows, WANTS, 1.0)
    assert model.config._attn_implementation == PACKED
    torch.testing.assert_close(model(ids).logits, expected[0])
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:, 2:], expected[1][:, 2:])


def sliding_model() -> nn.Module:
    config = AutoConfig.for_model(
        "mistral",
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_sliding_window_keeps_padded_rows() -> None:
    model, rows = sliding_model(), rows_of_lengths((7, 3, 24, 3, 11))
    assert not is_packable(model)
    found, expected = evaluate(model, rows, WANTS, 1.0), []
    for row in rows:
        logp = torch.log_softmax(model(torch.from_numpy(row.token_ids).long()[None]).logits[0], -1)
        ids = torch.from_numpy(row.token_ids[1:]).long()
        expected.append(logp[:-1].gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(found["logprob"], torch.cat(expected), rtol=1e-6, atol=2e-6)
    assert model.config._attn_implementation != PACKED


def test_one_sequence_has_no_padding_and_neighbours_of_equal_length() -> None:
    layout = in_one_sequence(rows_of_lengths((4, 9, 4, 1)))
    assert layout.tokens.shape == (1, 3 + 8 + 3)
    assert layout.documents == Documents((8, 3, 3))
    assert layout.documents.runs == [(1, 8), (2, 3)]
    assert layout.documents.positions().tolist() == [*range(8), *range(3), *range(3)]
    assert in_one_sequence(rows_of_lengths((5, 5))).tokens.shape == (2, 4)
    assert side_by_side(rows_of_lengths((4, 9))).tokens.shape == (2, 8)


def test_padded_batches_hold_a_long_row_apart() -> None:
    rows = rows_of_lengths([256, *[16] * 40])
    assert [len(batch) for batch in padded_batches(rows)] == [1, 40]
