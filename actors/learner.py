"""The learner's shell: what a rank needs to start, and the function that Ray Train runs on each.

Takes steps from the mailbox until it says stop, and tells it once a second that the process lives.
Loads torch only where it runs, not in the driver that names it.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train.collective import broadcast_from_rank_zero

from manta.actors.backends.settings import ON_CPU, ON_GPU, LearnerSettings
from manta.actors.cores import available_cores
from manta.actors.device_place import DevicePlace
from manta.actors.hand_over import HandOver
from manta.actors.mailbox import Mailbox
from manta.actors.models.spec import ModelSpec
from manta.actors.muster import BEAT_SECONDS, Member
from manta.actors.step_work import Adopt, StartOrder, Stop
from manta.actors.vitals import introduce, sign_of_thread
from manta.actors.weight_store import WeightStore
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import Int32, WeightVersion


@dataclass(frozen=True, slots=True)
class LearnerStage:
    """How a stage trains: the same for all of its steps.

    `own_samples`: the engines of this run sampled what it trains on, under versions of its weights.
    """

    algorithm: AlgorithmSettings
    temperature: float
    updates_per_step: int
    epochs_per_step: int
    write_trajectories: bool
    own_samples: bool


@dataclass(frozen=True, slots=True)
class LearnerJob:
    """Everything a rank needs to start; travels in Ray Train's loop config. `is_colocated`: engines
    take their turns on the ranks' devices. With a `direct` transport ranks hand their weights over
    when they are told to, else after each step."""

    model: ModelSpec
    vocab_size: int
    seed: int
    settings: LearnerSettings
    stages: Mapping[str, LearnerStage]
    run_dir: str
    deterministic: bool
    probe_rows: tuple[Int32, ...]
    mailbox: ActorHandle[Mailbox]
    weight_store: ActorHandle[WeightStore]
    is_colocated: bool = False
    direct: str | None = None

    @property
    def is_tied_to_engines(self) -> bool:
        """Do engines hold what the ranks' processes lend them: a device, or a communicator? Other
        ranks would not fit them."""
        return self.is_colocated or self.direct is not None


def learner_loop(config: dict[str, LearnerJob]) -> None:
    """Ray Train's entry on every worker: steps until the mailbox says stop."""
    import torch

    from manta.actors.rank import Rank

    job = config["job"]
    context = ray.train.get_context()
    rank_index, world_size = context.get_world_rank(), context.get_world_size()
    _meet(job, context.get_local_rank(), rank_index, world_size)
    threads = job.settings.threads or max(1, available_cores() // context.get_local_world_size())
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(job.deterministic)
    order = _enlist(job, rank_index, world_size)
    incarnation = order.incarnation
    start = WeightVersion(order.step, incarnation)
    rank = Rank(job, rank_index, world_size, start)
    rank.enter(order.stage)
    if order.restore_from is not None:
        rank.load(order.restore_from)
    report = rank.first_report(order, _here())
    ray.get(job.mailbox.report.remote(order.step, rank_index, incarnation, report))
    step, handed, adopted = order.step, 0, 0
    while True:
        work = ray.get(job.mailbox.take.remote(step, incarnation, handed, adopted))
        if isinstance(work, Stop):
            break
        if isinstance(work, HandOver):
            handed = work.number
            answer = rank.hand_over(work)
            ray.get(job.mailbox.handed.remote(handed, rank_index, answer))
            continue
        if isinstance(work, Adopt):
            adopted, step = work.number, work.version.step
            report = rank.adopt(work)
            ray.get(job.mailbox.adopted.remote(adopted, rank_index, incarnation, report))
            continue
        step = work.plan.step
        report = rank.step(work, incarnation)
        ray.get(job.mailbox.report.remote(step, rank_index, incarnation, report))
    rank.save(step, work.save_to)
    rank.close()


def _meet(job: LearnerJob, local_rank: int, rank: int, world_size: int) -> None:
    """The ranks become a process group; each has its device."""
    import torch
    from ray.train.torch import get_device

    from manta.actors.rendezvous import join_process_group

    # DeepSpeed takes its device from it
    os.environ["LOCAL_RANK"] = str(local_rank)
    if job.settings.devices:
        # Those of all ranks on the node can be seen here
        torch.cuda.set_device(get_device())
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    backend = ON_GPU if job.settings.devices else ON_CPU
    join_process_group(backend, rank, world_size, host, broadcast_from_rank_zero)


def _enlist(job: LearnerJob, rank: int, world_size: int) -> StartOrder:
    """Says who this rank is, and from then on that it lives; where its group starts from."""
    group = broadcast_from_rank_zero(uuid.uuid4().hex)
    context = ray.get_runtime_context()
    node = context.get_node_id()
    member = Member(rank, os.getpid(), node, context.current_actor, introduce(node))
    order: StartOrder = ray.get(job.mailbox.enlist.remote(group, world_size, member))  # type: ignore[assignment]
    beating = threading.Thread(
        target=_beat,
        args=(job.mailbox, rank, order.incarnation, threading.get_ident()),
        name="heartbeat",
        daemon=True,
    )
    beating.start()
    return order


def _beat(mailbox: ActorHandle[Mailbox], rank: int, incarnation: int, thread: int) -> None:
    never = threading.Event()
    while not never.wait(BEAT_SECONDS):
        mailbox.alive.remote(rank, incarnation, sign_of_thread(thread))


def _here() -> DevicePlace:
    context = ray.get_runtime_context()
    return DevicePlace(context.get_node_id(), tuple(context.get_accelerator_ids()["GPU"]))
