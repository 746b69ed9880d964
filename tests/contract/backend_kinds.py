"""The backends that the contract tests hold to the same promises; DeepSpeed counts once a stage."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from manta.actors.backends.registry import BACKENDS
from manta.actors.backends.settings import DeepSpeedSettings, LearnerSettings
from manta.envs.records import Json

NEEDS_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: make test installs it"
)
STAGES = [f"deepspeed-{stage}" for stage in (0, 1, 2, 3)]
SHARDED = ["fsdp", *(pytest.param(kind, marks=NEEDS_DEEPSPEED) for kind in STAGES)]
KINDS = ["plain", *SHARDED]
assert {kind.partition("-")[0] for kind in ("plain", "fsdp", *STAGES)} == set(BACKENDS)

BFLOAT16 = ["plain", "fsdp"]
"""Those that train a model whose parameters are bfloat16."""

# Else stage 3 leaves parameters as small as a test's whole on every rank.
_SPLIT_ALL: dict[str, Json] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


def settings_of(kind: str, **values: object) -> LearnerSettings:
    """The settings of `kind` (a name in the run file, or `deepspeed-STAGE`) with `values`."""
    backend, _, stage = kind.partition("-")
    if stage:
        values["deepspeed"] = DeepSpeedSettings(int(stage), config=_SPLIT_ALL)  # type: ignore[arg-type]
    return LearnerSettings(backend=backend, **{"learning_rate": 1e-3, **values})  # type: ignore[arg-type]
