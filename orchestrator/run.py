"""A run from its checked run file to its end: connect, resume, build, stages, summary.

`train` is what the command line calls. What a stage does is in its own file.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time

import ray

from manta.actors.step_work import StartOrder
from manta.envs.side_by_side import ending
from manta.orchestrator.between_lives import end_between_lives
from manta.orchestrator.build import Crew, build
from manta.orchestrator.checkpoint import Checkpoints, Unreachable
from manta.orchestrator.commits import Commits
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.draining_nodes import DrainingNodes
from manta.orchestrator.elastic import Elastic, Sizes
from manta.orchestrator.feed import FeedState
from manta.orchestrator.file_trouble import told_of
from manta.orchestrator.head_watch import lost_head, watch_head
from manta.orchestrator.learner_group import Restarts
from manta.orchestrator.learner_sizing import LearnerSizing
from manta.orchestrator.learner_starts import LearnerStarts
from manta.orchestrator.ledger import Entry, Ledger, truncate
from manta.orchestrator.lives import Lives
from manta.orchestrator.lost_room import await_room
from manta.orchestrator.metrics import BEGINS_ANEW
from manta.orchestrator.model_names import steps_named
from manta.orchestrator.named_weights import NamedWeights
from manta.orchestrator.no_room import with_advice
from manta.orchestrator.past_life import PastLife
from manta.orchestrator.placement import check_resources, connect, where_ray_is, within_reach
from manta.orchestrator.products import Products
from manta.orchestrator.progress import Progress
from manta.orchestrator.rebirth import Rebirths, causes
from manta.orchestrator.recorder import Recorder
from manta.orchestrator.resume import Asked, origin
from manta.orchestrator.routing_watch import RoutingWatch
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.run_file import resolved
from manta.orchestrator.run_stage import run_stage
from manta.orchestrator.scorer_watch import ScorerWatch
from manta.orchestrator.stage_products import leave, left_by
from manta.orchestrator.status_writer import StatusWriter
from manta.orchestrator.stop_signals import stop_on_signals
from manta.orchestrator.storage import Storage, StorageHangs
from manta.orchestrator.summary import State
from manta.orchestrator.wait import Waits, unless, unless_ended
from manta.orchestrator.watch import accompanied


def train(run_file: RunFile, lives: Lives, asked: Asked) -> int:
    """Runs all stages of `run_file`, from its newest checkpoint if there is one, or from the one
    that is `asked` for.

    `lives` has checked that the run directory fits. Returns the exit code: 0 finished or stopped, 1
    failed. Raises ValueError where the cluster or the directory cannot take the run.

    A life that ends in what another may heal is followed by one, `run.max_restarts` times in a row
    without a newly committed checkpoint.
    """
    directory = lives.directory
    directory.create()
    rebirths = Rebirths(run_file.run.max_restarts)
    past: PastLife | None = None
    with directory.lock():
        while True:
            try:
                ended = _live(run_file, lives, rebirths, asked, past)
            except (ValueError, OSError, ray.exceptions.RayError) as error:
                if not rebirths.have_begun:
                    raise
                return end_between_lives(directory, error)
            if isinstance(ended, int):
                return ended
            past, asked = ended, Asked()


def _live(
    run_file: RunFile, lives: Lives, rebirths: Rebirths, asked: Asked, past: PastLife | None
) -> int | PastLife:
    """One life of the driver, after that of `past`: the exit code, or what is left of a life that
    another is to follow."""
    if past is not None:
        past.await_end_of_processes()
    cluster = connect(os.getcwd(), run_file.run.cluster, run_file.run.variables)
    try:
        if past is None:
            check_resources(run_file, cluster)
        else:
            past.await_end_of_actors()
        with told_of(f"the run directory {lives.directory.root} cannot be written"):
            driver = _Driver(run_file, lives, rebirths, asked, is_first=past is None)
            lives.save(run_file)
        code = asyncio.run(driver.run())
        if code is not None:
            return code
        left = PastLife(has_own_ray=not cluster.address)
        left.end_learner()
        return left
    finally:
        ray.shutdown()


class _Driver:
    """A life of the driver, from start-up to summary."""

    def __init__(
        self,
        run_file: RunFile,
        lives: Lives,
        rebirths: Rebirths,
        asked: Asked,
        is_first: bool,
    ) -> None:
        directory = lives.directory
        self._run_file, self._directory = run_file, directory
        self._lives, self._rebirths, self._is_first = lives, rebirths, is_first
        self._should_stop = asyncio.Event()
        self._waits = Waits()
        self._storage = Storage(self._waits, run_file.run.deadline_seconds)
        keeping = run_file.checkpoint
        directory.place_checkpoints(keeping.path)
        self._checkpoints = Checkpoints(
            directory.checkpoints_at(), keeping.keep, keeping.keep_best, steps_named(run_file)
        )
        self._products = Products(directory.root)
        self._origin = origin(self._checkpoints, directory, asked)
        self._checkpoint = self._origin.checkpoint
        state = self._checkpoint.state if self._checkpoint else None
        step = state.step if state else 0
        lives.begin(step)
        self._starts = LearnerStarts(run_file, self._checkpoints, lives)
        truncate(directory.ledger, state.ledger_position if state else 0)
        left = self._unfinished()
        goes_on = state is not None and bool(left) and left[0].name == state.stage
        self._products.retract(step, [stage.name for stage in left] if goes_on else [])
        directory.discard_trajectories_after(step)
        self._metrics_position = state.metrics_position if state else 0

    async def run(self) -> int | None:
        """The exit code; None where the run begins anew."""
        recorder = Recorder(
            self._run_file,
            resolved(self._run_file),
            self._directory,
            self._waits,
            self._metrics_position,
        )
        ledger = Ledger(self._directory.ledger)
        place = where_ray_is()
        self._head = place.address if os.environ.get("RAY_ADDRESS") else ""
        self._status = StatusWriter(
            self._directory.status,
            self._run_file.run.name,
            recorder.moment,
            self._waits,
            place,
            lambda: self._lives.incarnation,
            recorder.event_text,
        )
        error, is_followed = None, False
        with recorder:
            try:
                self._origin.tell(recorder.event)
                state = await self._work(recorder, ledger)
            # Any part's failure, and nobody above hears of it: what is recorded, shown and told by
            # the exit code is why the run ended, and what it left is written down all the same
            except* Exception as errors:  # noqa: BLE001 - whatever ends the run is shown as its cause
                told = causes(errors)
                lost = lost_head(self._head)
                error = lost or with_advice(told, self._directory.root, self._checkpoints)
                state = "failed"
                is_followed = not lost and await self._is_followed(errors)
                if is_followed:
                    recorder.event(BEGINS_ANEW, {"why": error})
            self._status.end("starting" if is_followed else state, error)
            left = left_by(self._products)
            summary = recorder.finish(state, ledger.totals, error, left)
        ledger.close()
        if is_followed:
            return None
        recorder.print_summary(summary)
        return 1 if error else 0

    async def _is_followed(self, error: BaseException) -> bool:
        if self._storage.hangs:
            return False
        try:
            steps = await self._storage.ask("list the checkpoints", self._checkpoints.steps)
        except (Unreachable, StorageHangs):
            return False
        follows = self._rebirths.follows(error, steps[-1] if steps else 0)
        return follows and not self._should_stop.is_set()

    async def _work(self, recorder: Recorder, ledger: Ledger) -> State:
        """Builds the crew and goes through the stages; how the run ended."""
        if not self._is_first:
            await self._await_room(recorder)
            if self._should_stop.is_set():
                return "stopped"
        with recorder.phase("start_up"):
            order = self._starts.order(self._checkpoint)
            restarts = Restarts(
                self._starts,
                self._storage,
                self._run_file.learner.max_restarts,
                recorder.event,
                self._run_file.start_seconds,
            )
            crew = build(self._run_file, self._directory.root, order, self._waits, restarts)
        context = self._context(crew, recorder, ledger)
        async with accompanied(context, self._status):
            try:
                return await self._watched(context, order)
            finally:
                await context.commits.close()
                if crew.learner is not None:
                    await crew.learner.close()
                await crew.rollout.close()

    async def _watched(self, run: RunContext, order: StartOrder) -> State:
        """Waits for the workers, and goes through the stages; meanwhile workers that die are
        replaced, and there is an eye on the router."""
        recorder, crew = run.recorder, run.crew
        watch = RoutingWatch(crew.rollout, recorder.routing, recorder.event, recorder.pools)
        scoring = ScorerWatch(crew.scorers, recorder.scoring)
        draining = DrainingNodes(crew.seats, self._status.workers, recorder.event)
        watches = [watch.run, scoring.run, draining.run, self._elastic(run).run]
        if crew.learner is not None and crew.learner.can_regroup:
            ranks = self._run_file.learner.ranks
            sizing = LearnerSizing(ranks, crew.learner, crew.client, lambda: draining.now)
            watches.append(sizing.run)
        async with asyncio.TaskGroup() as tasks:
            gone = (watch_head(self._head), crew.rollout.routed())
            beside = [tasks.create_task(each) for each in gone]
            beside += [tasks.create_task(each.run(recorder.event)) for each in crew.seats]
            with run.recorder.phase("start_up"):
                self._watch_signals(run.recorder)
                await self._start(run, order)
            self._status.state = "running"
            # What is there now lives as long as the run: the collector need not go through it
            # again, nor now, which takes 0.3 s and has found nothing.
            gc.freeze()
            beside += [tasks.create_task(each()) for each in watches]
            state = await self._stages(run)
            for each in beside:
                each.cancel()
        await watch.look()
        return state

    def _elastic(self, run: RunContext) -> Elastic:
        run_file, crew = self._run_file, run.crew
        return Elastic(
            Sizes(
                run_file.rollout.sizes, run_file.environment.sizes, run_file.reward_workers.sizes
            ),
            run_file.rollout.max_rows,
            crew.rollout,
            crew.environment,
            crew.rewards,
            lambda: run.recorder.is_in("generate", "evaluate"),
            lambda: run.progress.step,
            run.recorder.event,
        )

    async def _stages(self, run: RunContext) -> State:
        """Goes through what is left of the stages."""
        left, feed = self._resume(run)
        for stage in self._run_file.before(left[0]) if left else self._run_file.stages:
            await leave(run, stage)
        for stage in left:
            if stage.name != run.progress.stage or run.progress.stage_step == 0:
                run.progress.enter(stage.name)
            is_done = await run_stage(run, stage, feed)
            feed = None
            if is_done:
                await leave(run, stage)
            if run.should_stop.is_set():
                return "stopped"
        if run.crew.learner is not None:
            await self._waits.wait(
                "the mailbox to tell the learner ranks to stop",
                run.crew.client.stop(None),
                run.deadline_seconds,
            )
            await self._waits.wait(
                "the learner group to leave", run.crew.learner.ended(), run.deadline_seconds
            )
        return "finished"

    def _context(self, crew: Crew, recorder: Recorder, ledger: Ledger) -> RunContext:
        max_hours = self._run_file.run.max_hours
        return RunContext(
            run_file=self._run_file,
            directory=self._directory,
            crew=crew,
            checkpoints=self._checkpoints,
            commits=Commits(
                self._checkpoints,
                crew.client,
                recorder,
                self._waits,
                self._storage,
                self._run_file.run.deadline_seconds,
            ),
            ledger=ledger,
            recorder=recorder,
            progress=Progress(self._run_file.stages[0].name),
            waits=self._waits,
            storage=self._storage,
            lives=self._lives,
            products=self._products,
            named=NamedWeights(self._run_file, self._checkpoints, self._products),
            should_stop=self._should_stop,
            deadline=time.monotonic() + max_hours * 3600 if max_hours else float("inf"),
        )

    async def _start(self, run: RunContext, order: StartOrder) -> None:
        """Waits for the workers; afterwards the engines serve the learner's weights, verified."""
        if run.crew.learner is None:
            await self._waits.wait(
                f"engines {', '.join(run.crew.rollout.names)} to start",
                run.crew.publisher.serve_own(),
                run.deadline_seconds,
            )
            return
        reports = await self._waits.wait(
            "the learner group to start",
            unless_ended(run.crew.client.result(order.step), run.crew.learner.ended()),
            run.deadline_seconds,
        )
        if run.crew.device is not None:
            ranks = [reports[rank].place for rank in sorted(reports)]
            run.crew.rollout.start_beside([place for place in ranks if place is not None])
            run.recorder.watch(run.crew.device.turns)
        await run.crew.publisher.publish(reports[0])

    def _resume(self, run: RunContext) -> tuple[list[StageConfig], FeedState | None]:
        """The stages that are left, and the feed's state inside the first of them, if it began."""
        left = self._unfinished()
        if self._checkpoint is None:
            return left, None
        state = self._checkpoint.state
        run.progress = Progress(state.stage, state.step, state.stage_step)
        run.saved_step = state.step
        run.recorder.event("resumed", {"step": state.step, "stage": state.stage})
        has_ended = not left or left[0].name != state.stage
        if state.feed is not None and not has_ended:
            reason = "the run stopped before it was trained"
            run.ledger.record(
                [
                    Entry(state.stage, group, "dropped", state.step, reason)
                    for group in state.feed.outstanding
                ]
            )
        return left, None if has_ended else state.feed

    def _unfinished(self) -> list[StageConfig]:
        """The stages that the checkpoint has not seen the end of."""
        stages = list(self._run_file.stages)
        if self._checkpoint is None:
            return stages
        state = self._checkpoint.state
        index = [stage.name for stage in stages].index(state.stage)
        # A stage whose steps were raised since it ended goes on where it stood.
        has_ended = state.ends_stage and state.stage_step >= stages[index].steps
        return stages[index + has_ended :]

    async def _await_room(self, recorder: Recorder) -> None:
        """For nodes that the life before has lost, unless the run is to stop."""
        self._watch_signals(recorder)
        address, deadline_seconds = self._head, self._run_file.run.deadline_seconds
        room = await_room(
            lambda: check_resources(self._run_file, within_reach(address)),
            self._waits,
            deadline_seconds,
            recorder.event,
        )
        showing = asyncio.create_task(self._status.run())
        async with ending(showing):
            await unless(self._should_stop, unless_ended(room, watch_head(address)))

    def _watch_signals(self, recorder: Recorder) -> None:
        def tell() -> None:
            self._status.state = "stopping"
            recorder.event("stopping: saving at the step's end; again to stop at once", {})

        stop_on_signals(self._should_stop, tell)
