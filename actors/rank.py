"""A learner rank between steps: its model, its backend, and one step after another.

Pulls its groups straight from the object store, writes them down, steps, and reports. What a step
computes is in `manta.actors.learning`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import ray
import torch
import torch.distributed as dist

from manta.actors.backends.agreed import probe_together
from manta.actors.backends.protocol import (
    Backend,
    Offloads,
    Sharded,
    Snapshots,
    TakesParameters,
)
from manta.actors.backends.registry import build_backend
from manta.actors.backends.residents import build_residents
from manta.actors.backends.settings import OFFLOADING
from manta.actors.checkpoint_writer import CheckpointWriter
from manta.actors.collectives import alone, sum_over
from manta.actors.device_place import DevicePlace
from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.learner import LearnerJob
from manta.actors.learner_falls import GroupsLost
from manta.actors.learner_state import read_kl, write_kl
from manta.actors.learning import Learner
from manta.actors.models.causal import attention_tokens
from manta.actors.models.lora import build_policy
from manta.actors.models.policy import token_logprobs
from manta.actors.rank_files import RankFiles
from manta.actors.rows import rows_of
from manta.actors.sharding import IntArray
from manta.actors.step_work import Adopt, Saved, StartOrder, StepReport, StepWork
from manta.actors.stored_folder import StoredFolder
from manta.actors.transports.outbox import Outbox
from manta.actors.weight_tensors import unpack
from manta.actors.weights import content_hash
from manta.envs.records import Float32, GroupId, ScoredGroup, WeightVersion
from manta.envs.step_records import Update

if TYPE_CHECKING:
    from manta.actors.meeting import Meetings

T = TypeVar("T")


class Rank:
    """One rank's state between steps."""

    def __init__(self, job: LearnerJob, rank: int, world_size: int, held: WeightVersion) -> None:
        """`held` names the weights that the rank starts from."""
        self._job, self._rank, self._world_size = job, rank, world_size
        self._held, self._incarnation = held, held.incarnation
        self._files = RankFiles(Path(job.run_dir), rank)
        self._writer = CheckpointWriter(self._tell_saved)
        model = build_policy(job.model, job.vocab_size, job.seed)
        self._model = model.to(_gpu()) if job.settings.devices else model
        self._attention_tokens = attention_tokens(self._model)
        self._outbox = Outbox()
        self._meetings = None if job.direct is None else _meetings(job.direct, rank)
        self._stage = ""
        self._learner: Learner | None = None

    def enter(self, stage: str) -> Backend:
        """Starts `stage`: the same parameters, a fresh optimizer, and the stage's own residents."""
        self._stage = stage
        job = self._job
        algorithm = job.stages[stage].algorithm
        residents = build_residents(algorithm, job.settings, job.model, job.vocab_size, self._model)
        self._backend = build_backend(job.settings, self._model, residents)
        if self._job.is_colocated and not isinstance(self._backend, Offloads):
            raise ValueError(
                f"rollout.placement: colocated needs a learner backend that can leave its device, "
                f"and {self._job.settings.backend!r} has no offload() and restore(): use learner."
                f"backend {' or '.join(OFFLOADING)}, or set rollout.placement: disaggregated"
            )
        everyone = dist.group.WORLD
        all_reduce = alone if everyone is None else sum_over(everyone)
        self._learner = Learner(
            self._backend,
            algorithm,
            self._job.settings.tokens_per_micro_batch,
            self._job.stages[stage].temperature,
            self._rank,
            self._world_size,
            all_reduce,
            attention_tokens=self._attention_tokens,
            seed=job.seed,
        )
        return self._backend

    def first_report(self, order: StartOrder, here: DevicePlace) -> StepReport:
        """What the rank says before any step: where it is, and what it starts from, if anybody
        waits for that."""
        weights_hash = self.publish(self._held) if order.hand_over else ""
        probe = self.probe() if order.hand_over else ()
        self.leave_device()
        return StepReport(Update(self._held, {}, weights_hash), probe, {}, here)

    def publish(self, version: WeightVersion) -> str:
        """Rank 0 hands the weights to the store, as a delta where that is smaller; their hash.

        With a direct transport they are kept until `hand_over`."""
        if self._meetings is not None:
            if self._meetings.needs_weights:
                self._meetings.keep(self._backend.weights(version))
            else:
                self._lend_shards()
            return self._meetings.kept.sha256 if self._rank == 0 else ""
        if self._rank != 0:
            self._lend_shards()
            return ""
        weights = self._backend.weights(version)
        store, content = self._job.weight_store, self._outbox.content(weights)
        if not ray.get(store.put.remote(content)):
            ray.get(store.put.remote(weights))
        return weights.sha256

    def hand_over(self, order: HandOver) -> HandedOver:
        """Brings the newest weights where `order` says."""
        assert self._meetings is not None
        if order.receivers is not None:
            return self._meetings.meet(order.receivers)
        if self._rank == 0:
            ray.get(self._job.weight_store.put.remote(self._meetings.kept))
        return HandedOver()

    def probe(self) -> tuple[Float32, ...]:
        """Log-probs of the fixed probe rows, which every engine must reproduce."""
        if isinstance(self._backend, Sharded):
            return probe_together(self._backend, self._job.probe_rows if self._rank == 0 else ())
        if self._rank != 0:
            return ()
        return tuple(token_logprobs(self._model, self._job.probe_rows))

    def save(self, step: int, folder: str | None) -> None:
        """Brings what a checkpoint of `step` needs to `folder`, where one is named."""
        if folder is not None:
            assert self._learner is not None
            kl = self._learner.kl
            coef = kl.coef if kl.is_adaptive else None
            save_part(self._backend, self._writer, self._rank, step, folder, coef)

    def load(self, folder: str) -> None:
        """Goes on from what ranks, of any number, brought to `folder`."""
        with StoredFolder.at(folder).here() as path:
            self._backend.load(path)
            if self._learner is not None and self._learner.kl.is_adaptive:
                self._learner.kl.coef = read_kl(path)

    def close(self) -> None:
        """Waits for what is being written."""
        self._writer.wait()

    def _tell_saved(self, step: int, saved: Saved) -> None:
        incarnation = self._incarnation
        ray.get(self._job.mailbox.saved.remote(step, self._rank, incarnation, saved))

    def _lend_shards(self) -> None:
        if isinstance(self._backend, Sharded):
            self._backend.lend_shards()

    def leave_device(self) -> None:
        """Where engines share the device: it is theirs from here to the next step."""
        if self._job.is_colocated and isinstance(self._backend, Offloads):
            self._backend.offload()

    def _take_device(self) -> None:
        if self._job.is_colocated and isinstance(self._backend, Offloads):
            self._backend.restore()

    def adopt(self, order: Adopt) -> StepReport:
        """Goes on with other weights, whatever it learnt so far: in the order's stage, with a fresh
        optimizer and residents that start from them."""
        self._take_device()
        [weights] = _fetched([order.weights], f"the weights of stage {order.stage}")
        if content_hash(weights.specs, weights.data) != weights.sha256:
            raise RuntimeError(f"weights {weights.sha256[:12]} came damaged to rank {self._rank}")
        if not isinstance(self._backend, TakesParameters):
            raise ValueError(
                f"learner.backend {self._job.settings.backend!r} has no take(), so that its ranks "
                "cannot go on with other weights: choose plain, or do without start_from, merge "
                "and model"
            )
        self._backend.take(unpack(weights))
        self.enter(order.stage)
        self._held = order.version
        weights_hash = self.publish(order.version) if order.hand_over else ""
        update = Update(order.version, {}, weights_hash)
        self.save(order.version.step, order.save_to)
        probe = self.probe() if order.hand_over else ()
        self.leave_device()
        return StepReport(update, probe, {})

    def step(self, work: StepWork, incarnation: int) -> StepReport:
        started = time.perf_counter()
        if work.stage != self._stage:
            self.enter(work.stage)
        self._take_device()
        assert self._learner is not None
        stage = self._job.stages[work.stage]
        indices = self._learner.rows_needed(work.plan, stage.updates_per_step)
        groups = self._pull(work, indices)
        self._files.note_trained(
            work.plan.step,
            incarnation,
            {name: group.content_hash() for name, group in groups.items()},
        )
        writing = None
        if stage.write_trajectories:
            writing = self._files.write_trajectories(work.plan.step, list(groups.values()))
        pulled = time.perf_counter()
        held = self._held if stage.own_samples else None
        rows = {row.index: row for row in rows_of(work.plan, groups, indices, held)}
        metrics = self._learner.step(
            work.plan,
            rows,
            stage.epochs_per_step,
            stage.updates_per_step,
            work.learning_rate,
            work.residents,
        )
        metrics = {**metrics, "ranks": float(self._world_size)}
        stepped = time.perf_counter()
        self._held = version = WeightVersion(work.plan.step, incarnation)
        weights_hash = self.publish(version) if work.hand_over else ""
        handed_over = time.perf_counter()
        self.save(work.plan.step, work.save_to)
        saved = time.perf_counter()
        probe = self.probe() if work.hand_over else ()
        if work.hand_over:
            self.leave_device()
        if writing is not None:
            writing.result()
        done = time.perf_counter()
        timings = {
            "pull": pulled - started,
            "step": stepped - pulled,
            "hand_over": done - saved + handed_over - stepped,
        }
        if work.save_to is not None:
            timings["checkpoint"] = saved - handed_over
        histograms = self._learner.histograms if self._rank == 0 else {}
        update = Update(version, metrics, weights_hash)
        return StepReport(update, probe, timings, histograms=histograms)

    def _pull(self, work: StepWork, indices: IntArray) -> dict[GroupId, ScoredGroup]:
        """The groups that hold this rank's rows."""
        needed = sorted({int(work.plan.group_N[i]) for i in indices})
        blocks = sorted({work.place_G[g][0] for g in needed})
        what = f"the groups of step {work.plan.step}"
        pulled = dict(zip(blocks, _fetched([work.blocks[b] for b in blocks], what), strict=True))
        places = [work.place_G[g] for g in needed]
        return {
            work.plan.groups[g]: pulled[block].groups[entry]
            for g, (block, entry) in zip(needed, places, strict=True)
        }


def _fetched(refs: Sequence[ray.ObjectRef[T]], what: str) -> list[T]:
    """The objects. Raises GroupsLost where a node took one of them with it."""
    try:
        return ray.get(list(refs))
    except ray.exceptions.ObjectLostError as error:
        first = str(error).strip().partition("\n")[0]
        raise GroupsLost(f"{what} cannot be fetched any more: {first}") from error


def save_part(
    backend: Backend,
    writer: CheckpointWriter,
    rank: int,
    step: int,
    folder: str,
    kl_coef: float | None = None,
) -> None:
    """A rank's part in a checkpoint: from a copy, beside the steps that follow, where the backend
    can make one; else at once, by every rank where none has all parameters, or by rank 0 alone.
    Rank 0 adds the KL coefficient where that follows a target."""

    def with_kl(write: Callable[[Path], None]) -> Callable[[Path], None]:
        def both(path: Path) -> None:
            write(path)
            if rank == 0 and kl_coef is not None:
                write_kl(path, kl_coef)

        return both

    if isinstance(backend, Snapshots):
        writer.start(step, folder, lambda: with_kl(backend.snapshot()))
    elif rank == 0 or isinstance(backend, Sharded):
        writer.now(step, folder, with_kl(backend.save))
    else:
        writer.nothing(step)


def _meetings(name: str, rank: int) -> Meetings:
    # Loads vllm, which only a run with a direct transport must have where it learns
    from manta.actors.meeting import Meetings
    from manta.actors.transports.direct import DirectSender

    return Meetings(name, rank, DirectSender(name, rank, _gpu()))


def _gpu() -> torch.device:
    # Ray Train has made the rank's GPU the current one
    return torch.device("cuda", torch.cuda.current_device())
