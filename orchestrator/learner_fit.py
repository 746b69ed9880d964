"""One run of Ray Train: so many learner ranks, in a daemon thread beside the asyncio driver.

Owns the thread, and how Ray Train says that it ended. What ranks do is in `manta.actors.learner`;
what follows an end is `manta.orchestrator.learner_group`'s.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from manta.actors.learner import LearnerJob, learner_loop
from manta.actors.learner_falls import LearnerFalls, fall_of
from manta.actors.step_work import Fall

_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray Train's own watch for nodes that drain is an actor that stands anywhere, and so keeps a node
from being taken back; the ranks fall with their node as they would without it."""
_START_FAILURES = 3
"""How often Ray Train may find no place for its ranks (it looks for a minute each time)."""

THREAD = "learner-fit"


class _SharedDevices(Backend):
    """Ranks find each other by themselves (`manta.actors.rendezvous`): Ray Train's way for torch
    would listen on all interfaces, and load torch here and in its controller. A rank sees the
    devices of all ranks of its node, by which NCCL reaches from one to the other."""

    share_cuda_visible_devices = True


class Ranks(BackendConfig):
    """What Ray Train does for ranks before their loop begins: nothing but their devices."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _SharedDevices


class RankTrainer(DataParallelTrainer):
    """Without two of Ray Train's helpers, each a process that starts with the group.

    One hands out data sets, of which there are none. The other frees the group's places where only
    the controller dies, which here ends this driver's life, and with it the places. It would
    outlive the driver: for good, where no dashboard tells it that the controller is dead.
    """

    def _create_default_callbacks(self) -> list[Any]:
        left_out = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, left_out)]


class LearnerFit:
    """`ended` is None once the ranks have left their loop, or the fall that was the end."""

    def __init__(
        self,
        job: LearnerJob,
        ranks: int,
        resources: Mapping[str, float],
        storage: Path,
        restarts_ranks: bool,
    ) -> None:
        """`resources` are what each rank asks for. With `restarts_ranks` Ray Train starts as many
        anew whenever some fall, and tells the mailbox; else the first fall is the end."""
        # Its controller, a process of its own, goes by what this one's environment says
        os.environ.setdefault(_WATCHER, "0")
        self._trainer = RankTrainer(
            learner_loop,
            train_loop_config={"job": job},
            backend_config=Ranks(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=ranks,
                use_gpu=resources.get("GPU", 0) > 0,
                resources_per_worker=dict(resources),
            ),
            run_config=ray.train.RunConfig(
                name="learner",
                storage_path=str(storage),
                failure_config=ray.train.FailureConfig(
                    max_failures=-1 if restarts_ranks else 0,
                    controller_failure_limit=_START_FAILURES if restarts_ranks else 0,  # type: ignore[call-arg]
                ),
                callbacks=[LearnerFalls(job.mailbox)] if restarts_ranks else [],  # type: ignore[list-item]
            ),
        )
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Fall | None] = self._loop.create_future()
        threading.Thread(target=self._fit, name=THREAD, daemon=True).start()

    def _fit(self) -> None:
        fall: Fall | None = None
        try:
            self._trainer.fit()
        except ray.train.WorkerGroupError as error:
            fall = fall_of(error.worker_failures)
        except ray.train.TrainingFailedError as error:
            fall = Fall("unplaced", (str(error).strip(),))
        except ray.exceptions.RayError as error:
            fall = Fall("lost", (f"Ray Train's controller: {str(error).strip()}",))
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, fall)

    def _settle(self, fall: Fall | None) -> None:
        if not self.ended.done():
            self.ended.set_result(fall)
