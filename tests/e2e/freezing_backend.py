"""A learner backend whose rank freezes once, and is killed as a watchdog would: by its handle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import ray
from ray.actor import ActorHandle

from manta.actors.backends.plain import PlainBackend

FREEZES_WHERE = "MANTA_TEST_FREEZES_WHERE"
"""Names a file: where it is, the next rank that takes a copy of its state freezes."""


class FreezingBackend(PlainBackend):
    def snapshot(self) -> Callable[[Path], None]:
        freeze = Path(os.environ[FREEZES_WHERE])
        if freeze.exists():
            freeze.unlink()
            self._watchdog = ray.remote(Watchdog).options(num_cpus=0).remote()
            # Kept, and answered: a frozen process sends nothing, and one that freezes may go on
            ray.get(self._watchdog.kill_soon.remote([ray.get_runtime_context().current_actor]))
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().snapshot()


class Watchdog:
    def kill_soon(self, rank: list[ActorHandle[object]]) -> None:
        threading.Timer(1.0, ray.kill, rank).start()
