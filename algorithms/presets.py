"""Named algorithms: published settings as plain values (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping

from manta.algorithms.settings import AlgorithmSettings

PRESETS: Mapping[str, AlgorithmSettings] = {
    "grpo": AlgorithmSettings(name="grpo", samples_per_prompt=8),
    "sft": AlgorithmSettings(
        name="sft", samples_from="given", advantage="reward", loss="cross_entropy"
    ),
}


def check(settings: AlgorithmSettings) -> None:
    """Raises ValueError where the settings do not go together."""
    if settings.samples_per_prompt < 1:
        raise ValueError(f"samples_per_prompt is {settings.samples_per_prompt}: must be at least 1")
