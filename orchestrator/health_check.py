"""What must hold of `health` in a run file."""

from __future__ import annotations

from collections.abc import Iterator

from manta.orchestrator.config import HealthConfig


def health_problems(health: HealthConfig) -> Iterator[str]:
    for name in ("every_seconds", "start_seconds"):
        value = getattr(health, name)
        if value is not None and value <= 0:
            yield f"health.{name}: is {value:g}, must be above 0"
    if health.frozen_after_seconds < 1.5 * health.every_seconds:
        yield (
            f"health.frozen_after_seconds: is {health.frozen_after_seconds:g}, must be at least "
            f"1.5 times every_seconds ({health.every_seconds:g}): a worker that was not asked "
            "cannot have answered"
        )
