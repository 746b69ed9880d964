"""Autocast over float32 weights: close to float32, weights stay wide, formats that cannot go."""

from __future__ import annotations

import pytest
import torch

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings, Precision
from manta.actors.models.policy import token_logprobs
from manta.actors.models.precision import computing, has_fast_bfloat16
from manta.actors.weight_tensors import unpack
from manta.algorithms.tokens import LossTerms
from manta.envs.records import WeightVersion
from tiny import tiny_model, tiny_rows

needs_bfloat16 = pytest.mark.skipif(
    not has_fast_bfloat16(), reason="this CPU has no instructions for bfloat16"
)


def backend_of(precision: Precision, dtype: str = "float32") -> PlainBackend:
    settings = LearnerSettings(precision=precision, optimizer="sgd", clip_norm=0.0)
    return PlainBackend(tiny_model(dtype=dtype), settings)


def moved(backend: PlainBackend) -> torch.Tensor:
    """What one update by all tokens' log-probs moves the published weights by."""
    rows = tiny_rows()

    def whole() -> torch.Tensor:
        state = unpack(backend.weights(WeightVersion(0, 0)))
        assert all(tensor.dtype == torch.float32 for tensor in state.values())
        return torch.cat([state[name].flatten() for name in sorted(state)])

    before = whole()
    backend.update(
        [rows],
        ("logprob",),
        1.0,
        lambda batch, stats: LossTerms(-stats["logprob"].mean(), {}, {}),
        1.0,
    )
    return before - whole()


@needs_bfloat16
def test_bf16_evaluates_close_to_fp32_and_not_the_same() -> None:
    rows = tiny_rows()
    narrow, wide = (
        backend_of(precision).evaluate(rows, ("logprob",), 1.0)["logprob"]
        for precision in ("bf16", "fp32")
    )
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide).abs().max() < 0.05


@needs_bfloat16
def test_bf16_moves_float32_weights_as_fp32_does() -> None:
    narrow, wide = moved(backend_of("bf16")), moved(backend_of("fp32"))
    assert wide.norm() > 0
    assert 0 < float((narrow - wide).norm() / wide.norm()) < 0.05


@needs_bfloat16
def test_the_probe_stays_in_the_format_of_the_model() -> None:
    model = tiny_model()
    ids = [row.token_ids for row in tiny_rows()]
    before = token_logprobs(model, ids)
    settings = LearnerSettings(precision="bf16")
    PlainBackend(model, settings).evaluate(tiny_rows(), ("logprob",), 1.0)
    after = token_logprobs(model, ids)
    assert all((one == other).all() for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_computes_in_the_format_of_the_model(dtype: str) -> None:
    with computing(tiny_model(dtype=dtype), "auto"):
        assert not torch.is_autocast_enabled("cpu")


def test_fp32_with_bfloat16_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"model\.dtype: float32"):
        backend_of("fp32", dtype="bfloat16")
