"""The learner group: ranks that follow one another, each group from where the last one got to.

Owns how many ranks there are, and what follows when they fall or leave for others: says from where
the next group goes on, or that the run cannot. A fixed number of ranks that fell is started anew by
Ray Train at once; where their number is a range, each group is a Ray Train run of its own, on the
places that are found. What ranks do is in `manta.actors.learner`; what they are told goes through
the mailbox, which also hands out the steps that a new group replays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from manta.actors.learner import LearnerJob
from manta.actors.step_log import StepsForgotten
from manta.actors.step_work import Fall, FallKind
from manta.envs.records import Json
from manta.envs.side_by_side import ending
from manta.orchestrator.learner_fit import LearnerFit
from manta.orchestrator.learner_starts import LearnerStarts
from manta.orchestrator.metrics import LEARNER_FELL, LEARNER_REGROUPS
from manta.orchestrator.pools import MailboxClient
from manta.orchestrator.rank_places import RankPlaces
from manta.orchestrator.storage import Storage
from manta.orchestrator.unlisted_ranks import end_unlisted

_PLACE_SECONDS = 3.0
"""How long a group waits for places of more than its fewest ranks before it starts without."""
_LOOK_SECONDS = 0.25


class LearnerFailed(RuntimeError):
    """Learner ranks raised or died, and would again."""


class LearnerLost(LearnerFailed):
    """Learner ranks raised or died. Nothing of this life heals it; another life may."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """How a group is followed by another within the run: `most` times in a row without a newly
    finished step; `event` says so. Ranks that are not up after `start_seconds` are ended."""

    starts: LearnerStarts
    storage: Storage
    most: int
    event: Callable[[str, Mapping[str, Json]], None]
    start_seconds: float


class LearnerGroup:
    def __init__(
        self,
        job: LearnerJob,
        resources: Mapping[str, float],
        storage: Path,
        client: MailboxClient,
        restarts: Restarts | None,
    ) -> None:
        """`resources` are what each rank asks for. Without `restarts` the first fall is the end."""
        self._job, self._resources, self._storage = job, resources, storage
        self._client, self._restarts = client, restarts
        self._sizes = job.settings.ranks
        self._places = RankPlaces(resources)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fit: LearnerFit | None = None
        self._regroups = ""
        self.ranks = 0
        self._standing = restarts.starts.incarnation if restarts else None
        self._wish: tuple[int | None, str] = (None, "")
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._watch())

    @property
    def has_ended(self) -> bool:
        return self._ended.done()

    async def ended(self) -> None:
        """Returns when the group has left its loop; raises LearnerFailed with the causes where it
        fell and is not followed by another."""
        await asyncio.shield(self._ended)

    @property
    def can_regroup(self) -> bool:
        """Engines that hold what the ranks' processes lend them would have to go with them."""
        return self._restarts is not None

    @property
    def wish(self) -> str:
        """Why the ranks should be followed by others (`regroup`); empty where they should stay."""
        incarnation, why = self._wish
        return why if incarnation == self._standing else ""

    def wish_of(self, incarnation: int, why: str) -> None:
        """What is seen of the ranks of `incarnation`. It counts for nothing where they have been
        told to leave meanwhile: others follow them, for whom all may be well."""
        self._wish = (incarnation, why)

    async def seek(self, places: int, leaving: Collection[str]) -> int:
        """Has so many places kept for further ranks; how many there are, on nodes that stay."""
        return await self._places.seek(places, leaving)

    async def regroup(self, why: str) -> None:
        """Has the ranks leave, for as many as there is place for then: between two steps, with a
        checkpoint of the last one. `why` was the wish when the step began."""
        self._regroups, self._standing = why, None
        await self._client.dismiss()

    async def close(self) -> None:
        """Nothing follows any more, whatever becomes of the group."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._places.release()
        if self._ended.done() and not self._ended.cancelled():
            self._ended.exception()

    async def _start(self) -> None:
        """A group on the places that there are."""
        self.ranks = await self._placed()
        restarts_ranks = self._sizes.is_fixed and bool(self._restarts and self._restarts.most)
        self._fit = LearnerFit(
            self._job, self.ranks, self._resources, self._storage, restarts_ranks
        )
        self._spawn(self._see_off(self._fit))

    async def _placed(self) -> int:
        """How many ranks there is place for, once it is for the fewest; they may take it."""
        sizes, waited = self._sizes, 0.0
        if sizes.is_fixed:
            self._places.release()
            return sizes.min
        while (found := await self._places.seek(sizes.max)) < sizes.max:
            if found >= sizes.min and waited >= _PLACE_SECONDS:
                break
            await asyncio.sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS
        self._places.release()
        return found

    async def _see_off(self, fit: LearnerFit) -> None:
        fall = await fit.ended
        regroups, self._regroups = self._regroups, ""
        if fall is None and not regroups:
            self._settle(None)
        elif fall is None:
            await self._client.fell(Fall("regrouped", (regroups,)))
        elif self._restarts is None or not self._restarts.most or self._sizes.is_fixed:
            # Where falls are to be followed Ray Train does that for a fixed number of ranks; here
            # it has given up
            self._settle(_failure(fall.kind, "the learner group fell", fall.causes))
        else:
            # A group of fewer ranks may find its place, where one of as many would not
            kind: FallKind = "died" if fall.kind == "unplaced" else fall.kind
            await self._client.fell(replace(fall, kind=kind))

    async def _watch(self) -> None:
        """Starts the first group, and gives every other one an order to start from."""
        await self._start()
        if self._restarts is not None:
            self._spawn(self._see_up(self._restarts))
            await self._follow(self._restarts)

    def _spawn(self, part: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(part))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, part: Coroutine[Any, Any, None]) -> None:
        """What keeps `part` from its end ends the group."""
        try:
            await part
        except LearnerFailed as failure:
            self._settle(failure)
        except (ray.exceptions.RayError, StepsForgotten) as error:
            self._settle(LearnerLost(f"the learner group cannot go on: {error}"), error)
        except (ValueError, OSError) as error:
            self._settle(LearnerFailed(f"the learner group cannot go on: {error}"), error)

    async def _see_up(self, restarts: Restarts) -> None:
        """Until the present group has read what it starts from. One that stops before it enlists is
        ended: Ray Train would wait for it for ever."""
        incarnation = restarts.starts.incarnation
        started = asyncio.ensure_future(self._client.started(incarnation))
        async with ending(started):
            while not (await asyncio.wait({started}, timeout=restarts.start_seconds))[0]:
                enlisted = {beat.member.pid for beat in await self._client.heartbeats()}
                if pids := await end_unlisted(enlisted):
                    restarts.event(
                        "learner ranks did not start",
                        {"processes": ", ".join(map(str, pids)), "now": "killed"},
                    )
            started.result()
        if restarts.starts.incarnation == incarnation:
            restarts.starts.has_read()

    async def _follow(self, restarts: Restarts) -> None:
        number, finished = 0, -1
        in_a_row: list[Fall] = []
        while True:
            fall = await self._client.fall(number)
            number += 1
            if fall.finished > finished:
                in_a_row, finished = [], fall.finished
            if fall.kind not in ("outnumbered", "regrouped"):
                in_a_row.append(fall)
                judge(in_a_row, restarts.most)
            what = "read the checkpoint that the learner group goes on from"
            order = await restarts.storage.ask(what, restarts.starts.again)
            replays = await self._client.restart(order)
            self._standing = order.incarnation
            before = self.ranks
            if self._fit is not None and self._fit.ended.done():
                await self._start()
            self._spawn(self._see_up(restarts))
            restarts.event(
                LEARNER_REGROUPS if fall.kind == "regrouped" else LEARNER_FELL,
                {
                    "why": "; ".join(fall.causes),
                    "newest finished step": fall.finished,
                    "goes on from step": order.step,
                    "steps to replay": replays,
                    "incarnation": order.incarnation,
                    "ranks": f"{before} to {self.ranks}",
                },
            )

    def _settle(self, failure: LearnerFailed | None, cause: Exception | None = None) -> None:
        if self._ended.done():
            return
        if failure is None:
            self._ended.set_result(None)
        else:
            failure.__cause__ = failure.__cause__ or cause
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
