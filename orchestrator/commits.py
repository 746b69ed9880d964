"""Checkpoints as they are made beside the steps: one at a time, each committed once it is whole.

Owns when a checkpoint may begin and what follows when it is there: the mailbox forgets the steps
that it covers. What it consists of is `manta.orchestrator.checkpoint`'s.

| coroutine | waits for | unblocked by |
| --- | --- | --- |
| `begin` | the checkpoint before, storage | its commit |
| `settled` | the commit under way, all of whose waits have deadlines | `_commit` |
| `_commit` | all ranks' files, the reference's, storage | their writers' words |
| `failed` | a checkpoint that fails | `_commit` |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

from manta.actors.step_work import Saved
from manta.actors.stored_folder import WrittenFile
from manta.orchestrator.checkpoint import Checkpoints, NotRemoved
from manta.orchestrator.pools import MailboxClient
from manta.orchestrator.recorder import Recorder
from manta.orchestrator.run_state import RunState
from manta.orchestrator.storage import Storage
from manta.orchestrator.wait import Waits


class Commits:
    def __init__(
        self,
        checkpoints: Checkpoints,
        client: MailboxClient,
        recorder: Recorder,
        waits: Waits,
        storage: Storage,
        deadline_seconds: float,
    ) -> None:
        self._checkpoints, self._client, self._recorder = checkpoints, client, recorder
        self._waits, self._storage = waits, storage
        self._deadline_seconds = deadline_seconds
        self._under_way: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def begin(self, step: int) -> str:
        """Where ranks bring their files for a checkpoint of `step`, once the one before is done."""
        await self.settled()
        what = f"make room for checkpoint {step}"
        return await self._storage.ask(what, self._checkpoints.begin, step)

    def start(
        self,
        state: RunState,
        has_learner: bool,
        others: Awaitable[tuple[WrittenFile, ...]] | None = None,
    ) -> None:
        """Commits the checkpoint that `begin` began, beside whatever comes next; `has_learner`:
        learner ranks have been told to bring their files. `others` are on their way with more."""
        assert self._under_way is None or self._under_way.done()
        self._under_way = asyncio.create_task(self._commit(state, has_learner, others))
        self._under_way.add_done_callback(self._note)

    async def settled(self) -> None:
        """Until no checkpoint is being made. Raises CheckpointFailed, or what else failed."""
        if self._under_way is not None and not self._under_way.done():
            with self._recorder.phase("checkpoint_wait"):
                await asyncio.wait([self._under_way])
        if self._under_way is not None:
            await self._under_way

    async def failed(self) -> None:
        """Never returns; raises what kept a checkpoint from being made."""
        await asyncio.shield(self._failure)

    async def close(self) -> None:
        """Gives up what is being made: without its manifest it is no checkpoint. Returns once no
        storage is at work on it."""
        if self._failure.done():
            self._failure.exception()
        if self._under_way is not None and not self._under_way.done():
            self._under_way.cancel()
            with suppress(asyncio.CancelledError):
                await self._under_way
        await self._storage.settle()

    async def _commit(
        self,
        state: RunState,
        has_learner: bool,
        others: Awaitable[tuple[WrittenFile, ...]] | None,
    ) -> None:
        with self._recorder.phase("checkpoint"):
            saved: tuple[Saved, ...] = ()
            if has_learner:
                saved = await self._waits.wait(
                    f"the learner ranks to write the checkpoint of step {state.step}",
                    self._client.saved(state.step),
                    self._deadline_seconds,
                )
            problems = [each.problem for each in saved if each.problem]
            if problems:
                what = f"remove what there is of checkpoint {state.step}"
                await self._storage.ask(what, self._checkpoints.fail, state.step, problems)
            files = [file for each in saved for file in each.files]
            if others is not None:
                files += await self._waits.wait(
                    f"the reference worker to write its part of checkpoint {state.step}",
                    others,
                    self._deadline_seconds,
                )
            try:
                what = f"commit checkpoint {state.step}"
                await self._storage.ask(what, self._checkpoints.commit, state, files)
            except NotRemoved as error:
                self._recorder.event("older checkpoints stay", {"why": str(error)})
            await self._waits.wait(
                f"the mailbox to forget what checkpoint {state.step} covers",
                self._client.forget(state.step),
                self._deadline_seconds,
            )
        self._recorder.event("checkpoint", {"step": state.step})

    def _note(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not self._failure.done():
            self._failure.set_exception(error)
