from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manta.orchestrator.model_sizes import model_sizes, num_parameters
from manta.orchestrator.plan import devices
from manta.orchestrator.plan.devices import DEVICES, Device
from manta.orchestrator.plan.roofline import Roofline, passes
from tests.unit.orchestrator import tiny_run

DEVICE = Device("slow", 1e9, 1e8, 10**9, 1e7, 2, 1e6, "made up")


def roofline(folder: Path, *overrides: str) -> Roofline:
    loaded = tiny_run.load(folder, *overrides)
    sizes = model_sizes(loaded.model, 15)
    return Roofline(DEVICE, sizes, loaded, loaded.stages[-1], row=10.0)


def test_the_formulas_by_hand(tmp_path: Path) -> None:
    """One layer of width 8, 15 words, float32, tied: its parameters as `model_sizes` has them."""
    found = roofline(tmp_path)
    count = num_parameters(found.sizes)
    speeds = found.speeds(ranks=4)
    assert speeds.engine.base == pytest.approx(4 * count / (1e8 * devices.DECODE_SHARE))
    assert speeds.engine.per_context == pytest.approx(2 * 8 * 4 / (1e8 * devices.DECODE_SHARE))
    assert speeds.engine.compute_per_row == pytest.approx(2 * count / (1e9 * devices.PREFILL_SHARE))
    flops = 6 * count + 6 * 1 * 8 * 10
    assert speeds.learner.per_token == pytest.approx(flops / (1e9 * devices.TRAINING_SHARE))
    assert speeds.learner.fixed == pytest.approx(2 * 4 * count * 3 / 4 / 1e6), "not all beside"
    assert found.speeds(ranks=2).learner.fixed == pytest.approx(4 * count / 1e7)
    assert found.speeds(ranks=1).learner.fixed == 0.0


def test_keys_and_values_bound_the_rows(tmp_path: Path) -> None:
    found = roofline(tmp_path)
    room = 10**9 * found.run_file.rollout.vllm.gpu_memory_utilization
    room -= 4 * num_parameters(found.sizes)
    assert found.rows_that_fit() == int(room // (2 * 8 * 4 * 10))
    assert replace(found, device=replace(DEVICE, memory=None)).rows_that_fit() is None
    with pytest.raises(ValueError, match="do not fit 1 x slow"):
        replace(found, device=replace(DEVICE, memory=1000)).rows_that_fit()


def test_passes_over_a_step_s_tokens(tmp_path: Path) -> None:
    def of(*overrides: str) -> float:
        return passes(tiny_run.load(tmp_path, *overrides).stages[-1])

    assert of() == 1.0
    assert of("stages.rl.epochs_per_step=3") == 3.0
    assert of("stages.rl.epochs_per_step=3", "stages.rl.algorithm.proximal=learner") == 3 + 1 / 3
    # It scores every step, and learns in one pass over it, whatever the policy does
    assert of("stages.rl.epochs_per_step=3", "stages.rl.algorithm=prime") == 3 + 1 + 1 / 3


def test_devices_have_their_sources() -> None:
    assert set(DEVICES) == {"h100", "h200", "a100", "cpu"}
    assert all(len(device.source) > 40 for device in DEVICES.values())
