from __future__ import annotations

import torch
from torch import Tensor

from manta.actors.engines.sampler import SamplingColumns, sample, truncate


def columns(
    temperature: list[float], top_p: list[float] | None = None, top_k: list[int] | None = None
) -> SamplingColumns:
    rows = len(temperature)
    return SamplingColumns(
        torch.tensor(temperature),
        torch.tensor(top_p or [1.0] * rows),
        torch.tensor(top_k or [0] * rows),
        is_tempered=True,
        is_truncated=bool(top_p or top_k),
        is_greedy=0.0 in temperature,
    )


def uniforms(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_draw() -> None:
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2]).log().expand(5, 4)
    draws = uniforms(0.0, 0.49, 0.51, 0.79, 0.81)
    tokens, logprobs = sample(logits, columns([1.0] * 5), draws)
    assert tokens.tolist() == [0, 0, 2, 2, 3]
    want = torch.tensor([0.5, 0.5, 0.3, 0.3, 0.2]).log()
    torch.testing.assert_close(logprobs, want)


def test_the_largest_draw_never_reaches_a_token_without_probability() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf, 0.5, -torch.inf, -torch.inf]]).expand(64, 6)
    tokens, _ = sample(logits, columns([0.37] * 64), uniforms(*[1.0 - 2.0**-52] * 64))
    assert tokens.tolist() == [3] * 64


def test_rows_sample_by_their_own_settings() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4, 4)
    settings = columns([1.0, 0.5, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0, 0, 0, 2])
    tokens, logprobs = sample(logits, settings, uniforms(0.99, 0.99, 0.99, 0.99))
    assert tokens.tolist() == [3, 2, 0, 1]
    want = torch.stack(
        [
            torch.log_softmax(logits[0], -1)[3],
            torch.log_softmax(logits[0] / 0.5, -1)[2],
            torch.log_softmax(logits[0], -1)[0],
            torch.log_softmax(logits[0, :2] / 2.0, -1)[1],
        ]
    )
    torch.testing.assert_close(logprobs, want)


def test_logprobs_of_low_precision_logits_are_float32() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    tokens, logprobs = sample(logits, columns([1.0] * 3), uniforms(0.2, 0.5, 0.7))
    want = torch.log_softmax(logits.float(), -1).gather(1, tokens[:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, want)


def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.3])
    rows = probabilities.log().expand(5, 4)
    top_p = torch.tensor([0.05, 0.35, 0.65, 0.95, 1.0])
    kept = truncate(rows, torch.zeros(5, dtype=torch.int64), top_p).exp()
    want = [
        [0.0, 1.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0],
        [0.0, 4 / 7, 0.0, 3 / 7],
        [0.1, 0.4, 0.2, 0.3],
        [0.1, 0.4, 0.2, 0.3],
    ]
    torch.testing.assert_close(kept, torch.tensor(want))


def test_top_k_comes_before_top_p() -> None:
    rows = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(3, 4)
    # Of the two most likely, the first alone holds 4/7 of the mass.
    kept = truncate(rows, torch.tensor([2, 2, 9]), torch.tensor([0.5, 0.6, 1.0])).exp()
    want = [[0.0, 1.0, 0.0, 0.0], [0.0, 4 / 7, 0.0, 3 / 7], [0.1, 0.4, 0.2, 0.3]]
    torch.testing.assert_close(kept, torch.tensor(want))


def test_sampling_follows_the_distribution() -> None:
    count = 20_000
    probabilities = torch.tensor([0.05, 0.3, 0.15, 0.4, 0.1])
    draws = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, _ = sample(probabilities.log().expand(count, 5), columns([1.0] * count), draws)
    seen = tokens.bincount(minlength=5)
    chi_square = float(((seen - count * probabilities) ** 2 / (count * probabilities)).sum())
    # The 99.9th percentile at 4 degrees of freedom.
    assert chi_square < 18.5
