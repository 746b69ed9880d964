"""Statistics of the vocabulary against the plain way, which makes all logits at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from manta.actors.backends.protocol import TopK, Want
from manta.actors.models.vocabulary import LEAST_REST, token_statistics

WANTS: tuple[Want, ...] = (
    "logprob", "entropy", "logsumexp", "vocab_mean", "likeliest", TopK(3), "top_ids", "top_rest",
)  # fmt: skip
TEMPERATURE = 0.7


class Case:
    """`tokens` hidden states over `words` words, with a bias on request."""

    def __init__(self, tokens: int, words: int, with_bias: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(tokens, 16, generator=generator).requires_grad_()
        # Logits of a few units: larger ones round by more than 1e-6 in either way
        self.weight = (torch.randn(words, 16, generator=generator) / 4).requires_grad_()
        self.bias = torch.randn(words, generator=generator) if with_bias else None
        self.targets = torch.randint(0, words, (tokens,), generator=generator)
        self.likely = torch.rand(tokens, words, generator=generator).topk(4).indices
        self.factors = torch.randn(3, tokens, generator=generator)
        self.by_likeliest = torch.randn(tokens, 5, generator=generator)
        if self.bias is not None:
            self.bias.requires_grad_()

    @property
    def inputs(self) -> list[Tensor]:
        return [self.hidden, self.weight, *([] if self.bias is None else [self.bias])]

    def ours(self, wants: Sequence[Want], chunk_elements: int) -> dict[str, Tensor]:
        return token_statistics(
            self.hidden,
            self.weight,
            self.bias,
            self.targets,
            TEMPERATURE,
            wants,
            chunk_elements,
            self.likely,
        )

    def plain(self) -> dict[str, Tensor]:
        logits = torch.nn.functional.linear(self.hidden, self.weight, self.bias) / TEMPERATURE
        logp = torch.log_softmax(logits, -1)
        return {
            "logprob": logp.gather(1, self.targets[:, None])[:, 0],
            "entropy": -(logp.exp() * logp).sum(-1),
            "logsumexp": logits.logsumexp(-1),
            "vocab_mean": logits.mean(-1),
            "likeliest": lumped(logp, self.likely),
            "top_k": logp.topk(3).values,
            "top_ids": logp.topk(3).indices.to(torch.int32),
            "top_rest": lumped(logp, logp.topk(3).indices)[:, -1],
        }

    def gradients(self, found: dict[str, Tensor], names: Sequence[str]) -> list[Tensor]:
        loss = torch.zeros(())
        for name, factor in zip(names, [*self.factors, None], strict=False):
            if name == "likeliest":
                loss = loss + (self.by_likeliest * found[name]).sum()
            else:
                assert factor is not None
                loss = loss + factor @ found[name]
        return list(torch.autograd.grad(loss, self.inputs))


def lumped(logp: Tensor, words: Tensor) -> Tensor:
    """The log-probs at `words`, and last of all others together."""
    rest = logp.scatter(1, words, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logp.gather(1, words), rest], 1)


def relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    return max(
        float((one - other).detach().norm() / other.detach().norm())
        for one, other in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("chunk_elements", [1, 500, 1 << 20])
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_want_equals_the_plain_way(chunk_elements: int, with_bias: bool) -> None:
    case = Case(41, 101, with_bias)
    found, expected = case.ours(WANTS, chunk_elements), case.plain()
    assert list(found) == [str(want) for want in WANTS]
    assert torch.equal(found.pop("top_ids"), expected.pop("top_ids"))
    for name, values in expected.items():
        assert relative([found[name]], [values]) < 1e-6, name
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=4e-6)
    assert not found["vocab_mean"].requires_grad
    assert not found["top_k"].requires_grad


@pytest.mark.parametrize("chunk_elements", [1, 500, 1 << 20])
@pytest.mark.parametrize(
    "names",
    [
        ("logprob",),
        ("entropy",),
        ("logsumexp",),
        ("logprob", "entropy"),
        ("logprob", "logsumexp"),
        ("logprob", "entropy", "logsumexp"),
        ("likeliest",),
        ("logprob", "likeliest"),
        ("logprob", "entropy", "likeliest"),
        ("entropy", "logsumexp", "likeliest"),
    ],
)
def test_gradients_equal_the_plain_way(names: tuple[Want, ...], chunk_elements: int) -> None:
    case = Case(41, 101, with_bias=True)
    strings = [str(name) for name in names]
    found = case.gradients(case.ours(WANTS, chunk_elements), strings)
    assert relative(found, case.gradients(case.plain(), strings)) < 1e-6


def test_a_second_backward_pass_gives_the_same() -> None:
    case = Case(8, 11, with_bias=False)
    statistics = case.ours(("logprob", "entropy"), 1 << 20)
    loss = statistics["logprob"].sum() + statistics["entropy"].sum()
    once = torch.autograd.grad(loss, case.inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, case.inputs), once, rtol=0, atol=0)


def test_likely_tokens_far_from_zero_stay_exact() -> None:
    """Logits of some hundreds: a log-prob near 0 is a small difference of large numbers."""
    case = Case(16, 101, with_bias=False)
    with torch.no_grad():
        case.hidden *= 100
    found, expected = case.ours(WANTS, 500), case.plain()
    for name in ("logprob", "entropy", "top_k"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-5)


def test_what_is_frozen_gets_no_gradient() -> None:
    case = Case(9, 31, with_bias=False)
    case.weight.requires_grad_(False)
    loss = case.ours(("logprob",), 60)["logprob"].sum()
    (by_hidden,) = torch.autograd.grad(loss, [case.hidden])
    (expected,) = torch.autograd.grad(case.plain()["logprob"].sum(), [case.hidden])
    assert relative([by_hidden], [expected]) < 1e-6


def test_bfloat16_sums_its_chunks_in_float32() -> None:
    case = Case(64, 101, with_bias=False)
    hidden, weight = (t.detach().bfloat16().requires_grad_() for t in (case.hidden, case.weight))
    by_weight = []
    for chunk_elements in (101, 1 << 20):
        found = token_statistics(
            hidden, weight, None, case.targets, 1.0, ("logprob",), chunk_elements
        )
        by_weight += torch.autograd.grad(found["logprob"].sum(), [weight])
    assert by_weight[0].dtype == torch.bfloat16
    assert relative([by_weight[0].float()], [by_weight[1].float()]) < 4e-3


def test_autocast_multiplies_in_its_own_type_and_keeps_gradients_wide() -> None:
    case = Case(16, 31, with_bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.ours(("logprob",), 1 << 20)["logprob"]
    expected = case.plain()["logprob"]
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.1
    (by_hidden,) = torch.autograd.grad(found.sum(), [case.hidden])
    assert by_hidden.dtype == torch.float32


def test_more_words_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="top 12 words of a vocabulary of 11"):
        Case(2, 11, with_bias=False).ours((TopK(12),), 100)


@pytest.mark.parametrize("num", [2, 6])
def test_the_rest_is_exact_where_it_is_tiny_and_where_there_is_none(num: int) -> None:
    """A difference from 1 would be 0 here."""
    case = Case(8, 6, with_bias=False)
    with torch.no_grad():
        case.hidden *= 12
    case.likely = torch.softmax(case.hidden @ case.weight.T, -1).topk(num).indices
    case.by_likeliest = case.by_likeliest[:, :1].expand(-1, num + 1).clone()
    found = case.ours(("likeliest",), 18)
    logits = case.hidden.double() @ case.weight.double().T / TEMPERATURE
    exact = lumped(torch.log_softmax(logits, -1), case.likely)
    floor = torch.full_like(exact, -torch.inf)
    floor[:, -1] = math.log(LEAST_REST)
    wanted = torch.maximum(exact, floor).float()
    torch.testing.assert_close(found["likeliest"], wanted, rtol=1e-5, atol=1e-4)
    assert -60 < float(exact[:, -1].min().detach()) < -17 or num == 6
    if num == 6:
        exact = exact[:, :-1]
        wanted = torch.cat([exact, torch.zeros_like(exact[:, :1])], 1).float()
    gradients = case.gradients(found, ("likeliest",))
    assert relative(gradients, case.gradients({"likeliest": wanted}, ("likeliest",))) < 1e-5


def test_no_words_asked_for_are_the_rest_alone() -> None:
    case = Case(3, 11, with_bias=False)
    case.likely = case.likely[:, :0]
    found = case.ours(("likeliest",), 1 << 20)["likeliest"]
    torch.testing.assert_close(found, torch.zeros(3, 1), rtol=0, atol=1e-6)
    (by_hidden,) = torch.autograd.grad(found.sum(), [case.hidden])
    assert float(by_hidden.abs().max()) < 1e-6
