"""The learner group: a Ray Train run in a daemon thread beside the asyncio driver.

Owns the thread, its outcome, and what follows when ranks fall: Ray Train starts a new group of
processes at once, and this says from where it goes on, or that the run cannot. What ranks do is in
`manta.actors.learner`; what they are told goes through the mailbox, which also hands out the steps
that a new group replays.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from manta.actors.backends.settings import ON_CPU, ON_GPU
from manta.actors.learner import LearnerJob, learner_loop
from manta.actors.learner_falls import LearnerFalls, fall_of
from manta.actors.step_log import StepsForgotten
from manta.actors.step_work import Fall, FallKind
from manta.envs.records import Json
from manta.orchestrator.learner_starts import LearnerStarts
from manta.orchestrator.metrics import LEARNER_FELL
from manta.orchestrator.pools import MailboxClient

_START_FAILURES = 3
"""How often Ray Train may find no place for a group (it looks for a minute each time)."""


class LearnerFailed(RuntimeError):
    """Learner ranks raised or died, and would again."""


class LearnerLost(LearnerFailed):
    """Learner ranks raised or died. Nothing of this life heals it; another life may."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """How a group is followed by another within the run: `most` times in a row without a newly
    finished step; `event` says so."""

    starts: LearnerStarts
    most: int
    event: Callable[[str, Mapping[str, Json]], None]


class LearnerGroup:
    def __init__(
        self,
        job: LearnerJob,
        cpus_per_rank: float,
        gpus_per_rank: float,
        storage: Path,
        nodes: Mapping[str, float],
        client: MailboxClient,
        restarts: Restarts | None,
    ) -> None:
        """`nodes` is what each rank asks for beside: a resource of the nodes it may stand on.
        Without `restarts` the first fall is the end."""
        most = -1 if restarts and restarts.most else 0
        self._trainer = TorchTrainer(
            learner_loop,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend=ON_GPU if job.settings.devices else ON_CPU),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.settings.workers,
                use_gpu=gpus_per_rank > 0,
                resources_per_worker={"CPU": cpus_per_rank, "GPU": gpus_per_rank, **nodes},
            ),
            run_config=ray.train.RunConfig(
                name="learner",
                storage_path=str(storage),
                # mypy sees the signatures of Ray Train's first version
                failure_config=ray.train.FailureConfig(
                    max_failures=most,
                    controller_failure_limit=_START_FAILURES,  # type: ignore[call-arg]
                ),
                callbacks=[LearnerFalls(job.mailbox)] if most else [],  # type: ignore[list-item]
            ),
        )
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._fit, name="learner-group", daemon=True)
        self._thread.start()
        self._watching: asyncio.Task[None] | None = None
        if restarts is not None and restarts.most:
            self._watching = asyncio.create_task(self._watch(restarts))

    @property
    def has_ended(self) -> bool:
        return self._ended.done()

    async def ended(self) -> None:
        """Returns when the group has left its loop; raises LearnerFailed with the causes where it
        fell and is not followed by another."""
        await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Nothing follows any more, whatever becomes of the group."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._ended.done() and not self._ended.cancelled():
            self._ended.exception()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except ray.train.WorkerGroupError as error:
            fall = fall_of(error.worker_failures)
            failure = _failure(fall.kind, "the learner group fell", fall.causes)
            self._say(failure, error)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            self._say(LearnerLost(f"the learner group failed: {error}"), error)
        else:
            self._loop.call_soon_threadsafe(self._settle, None)

    def _say(self, failure: LearnerFailed, cause: Exception) -> None:
        failure.__cause__ = cause
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, failure)

    async def _watch(self, restarts: Restarts) -> None:
        """Sees to it that every group but the first has an order to start from."""
        try:
            await self._follow(restarts)
        except LearnerFailed as failure:
            self._settle(failure)
        except (ray.exceptions.RayError, StepsForgotten) as error:
            self._say(LearnerLost(f"the learner group cannot go on: {error}"), error)
        except (ValueError, OSError) as error:
            self._say(LearnerFailed(f"the learner group cannot go on: {error}"), error)

    async def _follow(self, restarts: Restarts) -> None:
        number, finished = 0, -1
        in_a_row: list[Fall] = []
        reading: asyncio.Task[None] | None = None
        try:
            while True:
                fall = await self._client.fall(number)
                number += 1
                if reading is not None:
                    reading.cancel()
                if fall.finished > finished:
                    in_a_row, finished = [], fall.finished
                if fall.kind != "outnumbered":
                    in_a_row.append(fall)
                    judge(in_a_row, restarts.most)
                order = await asyncio.to_thread(restarts.starts.again)
                replays = await self._client.restart(order)
                reading = asyncio.create_task(self._until_read(restarts.starts, order.incarnation))
                restarts.event(
                    LEARNER_FELL,
                    {
                        "why": "; ".join(fall.causes),
                        "newest finished step": fall.finished,
                        "goes on from step": order.step,
                        "steps to replay": replays,
                        "incarnation": order.incarnation,
                    },
                )
        finally:
            if reading is not None:
                reading.cancel()

    async def _until_read(self, starts: LearnerStarts, incarnation: int) -> None:
        # Whoever waits for falls is told of a mailbox that is gone
        with suppress(ray.exceptions.RayError):
            await self._client.started(incarnation)
            starts.has_read()

    def _settle(self, failure: LearnerFailed | None) -> None:
        if self._ended.done():
            return
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)


def judge(in_a_row: Sequence[Fall], most: int) -> None:
    """Raises LearnerFailed where no group is to follow those that fell `in_a_row`, since the same
    step was the newest finished one."""
    newest = in_a_row[-1]
    if newest.kind != "died":
        raise _failure(newest.kind, "the learner group fell", newest.causes)
    if len(in_a_row) > most:
        told = f"the learner group fell {len(in_a_row)} times in a row and finished no new step"
        raise _failure("refused", told, [cause for fall in in_a_row for cause in fall.causes])


def _failure(kind: FallKind, told: str, causes: Sequence[str]) -> LearnerFailed:
    """What ends this life of the run; another one is of use unless ranks `refused`."""
    text = f"{told}: {'; '.join(dict.fromkeys(causes))}"
    return LearnerFailed(text) if kind == "refused" else LearnerLost(text)
