"""Devices by name: what their makers say they do, and which part of it a run is assumed to get.

Owns the figures and their sources. From a model to seconds is `manta.orchestrator.plan.roofline`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """Dense matrix products a second in bfloat16 (of a core: float32), bytes a second of its
    memory, its memory in bytes (None: not bounded here), and bytes a second that it sends to each
    of `neighbours` devices beside it, and to others."""

    name: str
    flops: float
    memory_bandwidth: float
    memory: int | None
    link: float
    neighbours: int
    far_link: float
    source: str


GIB = 1 << 30

DEVICES: Mapping[str, Device] = {
    "h100": Device(
        "h100", 989.4e12, 3.35e12, 80 * 10**9, 450e9, 8, 50e9,
        "NVIDIA H100 SXM data sheet: 989.4 TFLOP/s bfloat16 without sparsity, 3.35 TB/s, 80 GB, "
        "NVLink 900 GB/s both ways; DGX H100: 400 Gb/s InfiniBand a GPU",
    ),
    "h200": Device(
        "h200", 989.4e12, 4.8e12, 141 * 10**9, 450e9, 8, 50e9,
        "NVIDIA H200 SXM data sheet: 989.4 TFLOP/s bfloat16 without sparsity, 4.8 TB/s, 141 GB, "
        "NVLink 900 GB/s both ways; DGX H200: 400 Gb/s InfiniBand a GPU",
    ),
    "a100": Device(
        "a100", 312e12, 2.039e12, 80 * 10**9, 300e9, 8, 25e9,
        "NVIDIA A100 SXM 80 GB data sheet: 312 TFLOP/s bfloat16 without sparsity, 2,039 GB/s, "
        "NVLink 600 GB/s both ways; DGX A100: 200 Gb/s InfiniBand a GPU",
    ),
    "cpu": Device(
        "cpu", 167e9, 10e9, None, 2e9, 1, 1e9,
        "one core of a server processor with AVX-512, measured: 335 GFLOP/s float32 on two cores; "
        "10 GB/s of memory a core and 1 to 2 GB/s between processes are assumed",
    ),
}  # fmt: skip

DECODE_SHARE = 0.6
"""Of the memory's bandwidth: what decoding is assumed to reach."""
PREFILL_SHARE = 0.5
"""Of the peak in products: prefill."""
TRAINING_SHARE = 0.4
"""The same of training, known as MFU: 38 to 43% are reported for dense models of 8 to 405 billion
parameters on up to 16,384 H100 (Llama 3, arXiv 2407.21783, table 4)."""
STEP_OVERHEAD = 0.002
"""Seconds of a decode step in which the device waits for its host."""
STORE_BANDWIDTH = 2e9
"""Bytes a second through Ray's object store (16 MiB in 8.5 ms, measured)."""
PUBLISH_FIXED = 0.2
"""Seconds of a publish beside the transfer: pause, proofs, resume."""
GROUP_SECONDS = 0.002
"""Of an environment worker a group: render, pack, score by rules."""
DRIVER_SECONDS = 0.1
"""Between two steps, and from a step's hand-over to its report beside the learner's own work."""
