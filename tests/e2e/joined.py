"""Joins the cluster of RAY_ADDRESS as a run does and has something computed there, or prints why
not; for tests."""

from __future__ import annotations

import os
import time

import ray

from manta.orchestrator.placement import connect


def double(number: int) -> int:
    return 2 * number


def main() -> None:
    start = time.monotonic()
    try:
        connect(os.getcwd())
    except ValueError as error:
        print(f"{time.monotonic() - start:.1f} s: {error}")
        return
    print(f"computed {ray.get(ray.remote(double).remote(21), timeout=60)}")
    ray.shutdown()


if __name__ == "__main__":
    main()
