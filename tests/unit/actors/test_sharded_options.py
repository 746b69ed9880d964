"""What `learner.fsdp` and `learner.deepspeed` may ask for, and what is not loaded without need."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from manta.actors.backends.registry import build_backend
from manta.actors.backends.settings import DeepSpeedSettings, FsdpSettings
from manta.actors.weight_tensors import unpack
from tests.contract.backend_kinds import NEEDS_DEEPSPEED, settings_of
from tests.contract.test_backend import (
    SIZES,
    VERSION,
    PolicyGradient,
    flat,
    gradient_plainly,
    relative,
)
from tests.unit.actors.test_precision import needs_bfloat16
from tiny import tiny_model, tiny_rows

WANTS = ("logprob", "entropy")


def test_layers_that_are_computed_again_have_the_same_gradient() -> None:
    rows = tiny_rows(SIZES)
    loss = PolicyGradient(rows)
    wanted = gradient_plainly(tiny_model(), rows, loss)
    options = FsdpSettings(checkpoint_activations=True)
    settings = settings_of("fsdp", optimizer="sgd", clip_norm=0.0, fsdp=options)
    model = tiny_model()
    build_backend(settings, model)
    # The second one, as of a later stage, must not wrap layers again.
    backend = build_backend(settings, model)
    before = flat(backend)
    backend.update([rows[:5], rows[5:]], WANTS, 0.9, loss, 1024.0)
    assert relative((before - flat(backend)) / 1024.0, wanted) < 1e-5


@needs_bfloat16
def test_layers_compute_in_bfloat16_over_float32_masters() -> None:
    rows = tiny_rows(SIZES)
    exact = build_backend(settings_of("fsdp"), tiny_model())
    coarse = build_backend(settings_of("fsdp", precision="bf16"), tiny_model())
    assert coarse.weights(VERSION).sha256 == exact.weights(VERSION).sha256
    apart = relative(*(each.evaluate(rows, WANTS, 0.9)["logprob"] for each in (coarse, exact)))
    assert 1e-5 < apart < 3e-2
    before = flat(coarse)
    coarse.update([rows], WANTS, 0.9, PolicyGradient(rows), 1e-6)
    assert {tensor.dtype for tensor in unpack(coarse.weights(VERSION)).values()} == {torch.float32}
    # Far below what bfloat16 could hold beside weights near 1.
    assert 0 < float((flat(coarse) - before).abs().max()) < 2e-6


def test_float32_products_of_bfloat16_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"learner\.precision is fp32, the model's weights are"):
        build_backend(settings_of("fsdp", precision="fp32"), tiny_model(dtype="bfloat16"))


def test_there_is_nothing_to_offload_from_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"learner\.fsdp\.offload: cpu keeps shards in host"):
        build_backend(settings_of("fsdp", fsdp=FsdpSettings(offload="cpu")), tiny_model())


@NEEDS_DEEPSPEED
def test_deepspeed_has_nothing_to_offload_from_a_cpu() -> None:
    settings = settings_of("deepspeed", deepspeed=DeepSpeedSettings(offload_optimizer="cpu"))
    with pytest.raises(ValueError, match=r"learner\.deepspeed\.offload_optimizer: cpu is for"):
        build_backend(settings, tiny_model())


@NEEDS_DEEPSPEED
def test_a_model_is_made_over_to_deepspeed_once() -> None:
    model = tiny_model()
    build_backend(settings_of("deepspeed-1"), model)
    with pytest.raises(ValueError, match="made over to DeepSpeed with other learner settings"):
        build_backend(settings_of("deepspeed-2"), model)


def test_deepspeed_is_loaded_by_its_backend_alone() -> None:
    code = (
        "import sys, manta.actors.backends.registry, manta.actors.backends.deepspeed, "
        "manta.actors.backends.fsdp; print('deepspeed' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
