"""Rows in one sequence against every row alone: log-probs, gradients, and nothing leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manta.actors.backends.agreed import filler_loss
from manta.actors.backends.protocol import Want
from manta.actors.micro_batches import micro_batches, padded_batches
from manta.actors.models.layout import in_one_sequence, side_by_side
from manta.actors.models.packed_attention import PACKED, is_packable
from manta.actors.models.policy import evaluate
from manta.actors.rows import Row
from tiny import VOCABULARY, library_model, likeliest_of, tiny_model, tiny_rows

WANTS: tuple[Want, ...] = ("logprob", "entropy", "likeliest")


def with_likely(rows: Sequence[Row]) -> list[Row]:
    generator = np.random.default_rng(1)
    return [replace(row, likeliest=likeliest_of(generator, row.num_tokens, 3)) for row in rows]


def rows_of_lengths(lengths: Sequence[int], seed: int = 0) -> list[Row]:
    """Everything after the first token is trained; a row of one token trains nothing."""
    generator = np.random.default_rng(seed)
    rows = [
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
    return with_likely(rows)


def alone(model: nn.Module, rows: Sequence[Row]) -> dict[str, Tensor]:
    """One sequence a call: there is nothing to pack and nothing to pad."""
    parts = [evaluate(model, [row], WANTS, 0.9) for row in rows]
    trained = [part for part in parts if len(part["logprob"])]
    return {name: torch.cat([part[name] for part in trained]) for name in parts[0]}


def gradient(model: nn.Module, found: dict[str, Tensor]) -> Tensor:
    model.zero_grad()
    steps = torch.linspace(-1, 1, len(found["logprob"]))
    loss = (steps * found["logprob"]).sum() + (steps**2 * found["entropy"]).sum()
    (loss + (steps[:, None] * found["likeliest"]).sum()).backward()
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
    for name in map(str, WANTS):
        torch.testing.assert_close(packed[name], expected[name], rtol=1e-6, atol=2e-6)
    wanted = gradient(model, expected)
    found = gradient(model, evaluate(model, rows, WANTS, 0.9))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def samples_of_prompts(
    prompts: Sequence[int], lengths: Sequence[Sequence[int]], order: int = 0
) -> list[Row]:
    """Rows that begin with prompt p and go on for each of `lengths[p]`, in a random order."""
    generator = np.random.default_rng(0)
    rows = []
    for prompt, of_prompt in zip(prompts, lengths, strict=True):
        ids = generator.integers(0, VOCABULARY, prompt)
        for length in of_prompt:
            whole = np.concatenate([ids, generator.integers(0, VOCABULARY, length)])
            mask = np.arange(len(whole)) >= prompt
            rows.append(Row(len(rows), whole.astype(np.int32), mask, None, None, {}))
    return with_likely([rows[i] for i in np.random.default_rng(order).permutation(len(rows))])


SHARED = {
    "one prompt": ((9,), ((4, 4, 4),)),
    "several, of one length": ((6, 6, 6), ((5, 2, 7), (5, 5, 1), (3, 2, 2))),
    "of different lengths": ((12, 5, 8), ((1, 6), (3, 1, 1, 3), (2, 2))),
    "beside rows of their own": ((10, 4, 7), ((3, 5), (6,), (2,))),
    "nothing but the first token": ((7, 7), ((1, 1, 1), (1, 4))),
}


@pytest.mark.parametrize(("prompts", "lengths"), SHARED.values(), ids=SHARED)
def test_a_beginning_that_rows_share_is_computed_once(
    prompts: tuple[int, ...], lengths: tuple[tuple[int, ...], ...]
) -> None:
    model, rows = tiny_model(), samples_of_prompts(prompts, lengths)
    layout = in_one_sequence(rows)
    shared = sum(
        prompt * (len(each) if len(each) == 1 else 1)
        for prompt, each in zip(prompts, lengths, strict=True)
    )
    assert layout.tokens.shape == (1, shared + sum(sum(each) - len(each) for each in lengths))
    found, expected = evaluate(model, rows, WANTS, 0.9), alone(model, rows)
    for name in map(str, WANTS):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=2e-6)
    wanted = gradient(model, expected)
    got = gradient(model, evaluate(model, rows, WANTS, 0.9))
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5


def test_holes_in_what_is_trained_do_not_matter_to_what_is_shared() -> None:
    model, rows = tiny_model(), samples_of_prompts((8,), ((9, 7, 9),))
    for row in rows:
        row.loss_mask[11:13] = False
    rows = with_likely(rows)
    assert in_one_sequence(rows).tokens.shape == (1, 8 + 8 + 6 + 8)
    found, expected = evaluate(model, rows, WANTS, 0.9), alone(model, rows)
    torch.testing.assert_close(found["logprob"], expected["logprob"], rtol=1e-6, atol=2e-6)


def test_a_long_sequence_is_filled_up_with_tokens_that_nothing_looks_at() -> None:
    model, rows = tiny_model(), with_likely(rows_of_lengths([10 + i % 9 for i in range(61)]))
    documents = in_one_sequence(rows).documents
    assert documents is not None
    *others, last = documents.lengths()
    assert sum([*others, last]) % 32 == 0 and last == 1, "no row is as short"
    found, expected = evaluate(model, rows, WANTS, 0.9), alone(model, rows)
    torch.testing.assert_close(found["logprob"], expected["logprob"], rtol=1e-6, atol=2e-6)
    wanted = gradient(model, expected)
    got = gradient(model, evaluate(model, rows, WANTS, 0.9))
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5


def test_little_to_share_is_not_worth_it() -> None:
    rows = samples_of_prompts((1,), ((60, 60),))
    assert in_one_sequence(rows).documents is None


@pytest.mark.parametrize("order", [0, 1])
def test_samples_of_one_prompt_are_in_one_micro_batch(order: int) -> None:
    batches = micro_batches(samples_of_prompts((6, 6), ((5, 2, 7), (6, 5, 1)), order), 40)
    assert [[row.index for row in batch] for batch in batches] == [[2, 0, 1], [3, 4, 5]]


def test_packed_rows_equal_padded_rows() -> None:
    """With holes in what is trained, against all logits of a padded batch."""
    rows, model = with_likely(tiny_rows((5, 4, 3))), tiny_model()
    layout = side_by_side(rows)
    logp_TV = torch.log_softmax(
        model(layout.tokens).logits.flatten(0, 1)[layout.positions_T] / 0.9, -1
    )
    ids_TK = torch.from_numpy(
        np.concatenate([row.likeliest.ids for row in rows if row.likeliest]).astype(np.int64)
    )
    padded = {
        "logprob": logp_TV.gather(1, layout.targets_T[:, None])[:, 0],
        "entropy": -(logp_TV.exp() * logp_TV).sum(-1),
        "likeliest": torch.cat(
            [
                logp_TV.gather(1, ids_TK),
                logp_TV.scatter(1, ids_TK, -torch.inf).logsumexp(1, keepdim=True),
            ],
            1,
        ),
    }
    packed = evaluate(model, rows, WANTS, 0.9)
    for name in map(str, WANTS):
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
    model = library_model(architecture, head_dim=4)
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
    return library_model("mistral", sliding_window=4)


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
    assert layout.documents is not None
    assert [(run.count, run.length, run.before) for run in layout.documents.runs] == [
        (1, 8, 0),
        (2, 3, 0),
    ]
    assert layout.documents.positions().tolist() == [*range(8), *range(3), *range(3)]
    assert in_one_sequence(rows_of_lengths((5, 5))).tokens.shape == (2, 4)
    assert side_by_side(rows_of_lengths((4, 9))).tokens.shape == (2, 8)


def test_padded_batches_hold_a_long_row_apart() -> None:
    rows = rows_of_lengths([256, *[16] * 40])
    assert [len(batch) for batch in padded_batches(rows)] == [1, 40]


def test_a_filler_row_makes_a_pass_for_what_is_likely_too() -> None:
    """Ranks without a micro-batch ask it for what the others ask theirs."""
    model = tiny_model()
    loss = filler_loss(partial(evaluate, model), ("logprob", "likeliest"), 0.9)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_rows_that_nothing_is_known_of_are_refused() -> None:
    with pytest.raises(ValueError, match="row 0: nothing says which words are likely"):
        evaluate(tiny_model(), tiny_rows((1,)), ("likeliest",), 0.9)
