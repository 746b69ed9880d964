"""The learner on a GPU: what it computes there is what it computes on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks import gpu_learner
from manta.actors.backends.protocol import Offloads
from manta.actors.backends.registry import build_backend
from manta.actors.models.policy import evaluate
from manta.actors.rows import Row
from manta.algorithms.tokens import LossTerms
from tests.contract.backend_kinds import settings_of
from tests.contract.test_backend import SIZES, VERSION, PolicyGradient, flat, relative, train
from tiny import tiny_model, tiny_rows

pytestmark = pytest.mark.gpu

ROWS = tiny_rows(SIZES)
CLOSE = 1e-4
"""Relative, in float32: a GPU adds up in another order."""


class OnCpu(PolicyGradient):
    """As a learner's loss: over statistics that were brought to the CPU."""

    def __call__(self, rows: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
        return super().__call__(rows, {name: values.cpu() for name, values in stats.items()})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("name", ["plain", "fsdp"])
def test_weights_move_as_on_the_cpu_and_a_checkpoint_goes_either_way(
    name: str, optimizer: str, tmp_path: Path
) -> None:
    if (name, optimizer) == ("fsdp", "muon"):
        pytest.skip("fsdp has no whole matrices")
    on_cpu = build_backend(settings_of("plain", optimizer=optimizer), tiny_model())
    on_gpu = build_backend(
        settings_of(name, optimizer=optimizer, devices=1), tiny_model().to("cuda")
    )
    before = flat(on_cpu)
    for backend in (on_cpu, on_gpu):
        train(backend, ROWS, OnCpu(ROWS), 60, 5)
    close = 5e-2 if optimizer == "muon" else CLOSE
    assert relative(flat(on_gpu) - before, flat(on_cpu) - before) < close
    on_gpu.save(tmp_path)
    on_cpu.load(tmp_path)
    assert on_cpu.weights(VERSION).sha256 == on_gpu.weights(VERSION).sha256


def test_an_offloaded_learner_gives_its_memory_back_and_learns_the_same() -> None:
    through, apart = (
        build_backend(settings_of("plain", devices=1), tiny_model().to("cuda")) for _ in "12"
    )
    assert isinstance(apart, Offloads)
    for _ in range(2):
        apart.restore()
        for backend in (through, apart):
            train(backend, ROWS, OnCpu(ROWS), 60, 2)
        apart.offload()
        assert apart.held_bytes() == 0
    assert through.weights(VERSION).sha256 == apart.weights(VERSION).sha256


def test_packed_rows_in_bfloat16_have_the_log_probs_of_float32() -> None:
    """Over torch's kernel for sequences of their own lengths, prompts that samples share too."""
    wanted = evaluate(tiny_model(), ROWS, ("logprob",), 1.0)["logprob"].detach()
    narrow = tiny_model(dtype="bfloat16").to("cuda")
    found = evaluate(narrow, ROWS, ("logprob",), 1.0)["logprob"].detach()
    assert 0 < float((found.cpu() - wanted).abs().max()) < 0.1


def test_an_update_of_half_a_billion_parameters_is_counted() -> None:
    figures = {f.name: f.value for f in gpu_learner.measured("0.5B", "plain", rounds=1)}
    assert figures["0.5B, plain"] > 0
    assert 0 < figures.get("0.5B, plain: MFU", 0.1) < 1
