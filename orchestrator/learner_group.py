"""The learner group: a Ray Train run in a daemon thread beside the asyncio driver.

Owns the thread and its outcome. What ranks do is in `manta.actors.learner`; what they are told
goes through the mailbox.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from manta.actors.backends.settings import ON_CPU, ON_GPU
from manta.actors.learner import LearnerJob, learner_loop


class LearnerFailed(RuntimeError):
    """A learner rank raised or died."""


class LearnerGroup:
    def __init__(
        self,
        job: LearnerJob,
        cpus_per_rank: float,
        gpus_per_rank: float,
        storage: Path,
        nodes: Mapping[str, float],
    ) -> None:
        """`nodes` is what each rank asks for beside: a resource of the nodes it may stand on."""
        self._trainer = TorchTrainer(
            learner_loop,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend=ON_GPU if job.settings.devices else ON_CPU),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.settings.workers,
                use_gpu=gpus_per_rank > 0,
                resources_per_worker={"CPU": cpus_per_rank, "GPU": gpus_per_rank, **nodes},
            ),
            run_config=ray.train.RunConfig(name="learner", storage_path=str(storage)),
        )
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._fit, name="learner-group", daemon=True).start()

    async def ended(self) -> None:
        """Returns when the group has left its loop; raises LearnerFailed with the cause."""
        await asyncio.shield(self._ended)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            failure = LearnerFailed(f"the learner group failed: {error}")
            failure.__cause__ = error
            self._loop.call_soon_threadsafe(self._settle, failure)
        else:
            self._loop.call_soon_threadsafe(self._settle, None)

    def _settle(self, failure: LearnerFailed | None) -> None:
        if self._ended.done():
            return
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)
