"""Builds the workers of a run, all at once, from a checked run file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manta.actors.learner import LearnerJob, LearnerStage
from manta.actors.step_work import StartOrder
from manta.actors.transports.settings import TransportSettings
from manta.algorithms.presets import PRESETS
from manta.envs.records import Int32
from manta.envs.tokenizer import build_tokenizer
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.environment_pool import EnvironmentPool
from manta.orchestrator.learner_group import LearnerGroup, Restarts
from manta.orchestrator.model_names import named_stage, parse_stage
from manta.orchestrator.placement import offered_nodes
from manta.orchestrator.pools import MailboxClient, ModelSource
from manta.orchestrator.probe import Tolerances, probe_rows
from manta.orchestrator.products import Products
from manta.orchestrator.publish import Publisher
from manta.orchestrator.reference_pool import ReferencePool
from manta.orchestrator.reference_use import stages_with_reference
from manta.orchestrator.reward_pool import RewardPool
from manta.orchestrator.role_needs import RoleNeed, role_needs
from manta.orchestrator.role_resources import asked
from manta.orchestrator.rollout_pool import RolloutPool
from manta.orchestrator.scorer_pool import ScorerPool
from manta.orchestrator.scorers import called_in, model_folder, role
from manta.orchestrator.seats import Seats
from manta.orchestrator.shared_device import SharedDevice, StepMailbox
from manta.orchestrator.wait import Waits


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of a run. `learner` is None where no stage trains, `references` where no stage
    needs them, `device` where learner and engines have their own. Steps go through `mailbox`."""

    rollout: RolloutPool
    rewards: RewardPool
    scorers: ScorerPool
    references: ReferencePool | None
    environment: EnvironmentPool
    client: MailboxClient
    mailbox: StepMailbox
    learner: LearnerGroup | None
    publisher: Publisher
    device: SharedDevice | None

    @property
    def seats(self) -> list[Seats[Any]]:
        """Who replaces workers that die, where they are replaced one by one."""
        seats: list[Seats[Any]] = [self.rewards.seats, self.environment.seats, *self.scorers.seats]
        if self.rollout.seats is not None:
            seats.append(self.rollout.seats)
        if self.references is not None:
            seats.append(self.references.seats)
        return seats


def tokenizer_name(run_file: RunFile) -> str:
    """What `build_tokenizer` takes: the model's folder where no tokenizer is named."""
    name = run_file.model.tokenizer or run_file.model.path
    assert name is not None
    return name


def build(
    run_file: RunFile, run_dir: Path, order: StartOrder, waits: Waits, restarts: Restarts | None
) -> Crew:
    """Starts every worker; none is waited for. Colocated engines follow when the learner's ranks
    have said where they are (`RolloutPool.start_beside`)."""
    needs = {need.role: need for need in role_needs(run_file)}
    cpus = {role: need.cpus for role, need in needs.items()}
    deadline = run_file.run.deadline_seconds
    name = tokenizer_name(run_file)
    vocab_size = build_tokenizer(name).vocab_size
    model = ModelSource(run_file.model, vocab_size, run_file.run.seed)
    transport = transport_settings(run_file, run_dir)
    client = MailboxClient(order, transport)
    probe = probe_rows(vocab_size, run_file.model.context)
    learner = None
    if run_file.needs_learner:
        job = _learner_job(run_file, vocab_size, run_dir, probe, client, transport.direct)
        learner = _learner_group(job, needs["learner"], client, restarts)
    rollout = RolloutPool(
        model, run_file.rollout, cpus.get("rollout", 0.0), run_file.run.deterministic, transport
    )
    scorers = _scorer_pool(run_file, cpus, name, run_dir)
    rewards = RewardPool(run_file.reward_workers.sizes.min, cpus.get("reward", 0.0), scorers)
    references = _references(run_file, cpus, model, transport)
    environment = EnvironmentPool(
        run_file.environment.sizes.min,
        cpus["environment"],
        name,
        rollout,
        rewards.handles,
        references.handles if references else [],
    )
    _introduce(environment, rewards, references)
    device = None
    if run_file.rollout.placement == "colocated":
        device = SharedDevice(rollout, client, waits, deadline)
    tolerances = Tolerances(run_file.publish.probe_tolerance, run_file.publish.engine_tolerance)
    turn = device.publishing if device else nullcontext
    is_direct = transport.direct is not None
    publisher = Publisher(rollout, client, probe, tolerances, waits, deadline, turn, is_direct)
    if device is None and not is_direct:
        rollout.replace_through(publisher)
    return Crew(
        rollout,
        rewards,
        scorers,
        references,
        environment,
        client,
        device or client,
        learner,
        publisher,
        device,
    )


def _introduce(
    environment: EnvironmentPool, rewards: RewardPool, references: ReferencePool | None
) -> None:
    """Environment workers hear of reward and reference workers that come and go."""

    async def tell() -> None:
        await environment.meet(rewards.handles, references.handles if references else [])

    rewards.tell = tell
    if references is not None:
        references.tell = tell


def _learner_group(
    job: LearnerJob, need: RoleNeed, client: MailboxClient, restarts: Restarts | None
) -> LearnerGroup:
    """With `restarts` one that falls is followed by another, if engines need not go with it."""
    follows = None if job.is_tied_to_engines else restarts
    storage, nodes = Path(job.run_dir) / "learner", asked("learner", offered_nodes())
    resources = {"CPU": need.cpus, "GPU": need.gpus, **nodes}
    return LearnerGroup(job, resources, storage, client, follows)


def _references(
    run_file: RunFile,
    cpus: Mapping[str, float],
    model: ModelSource,
    transport: TransportSettings,
) -> ReferencePool | None:
    if not stages_with_reference(run_file):
        return None
    settings, temperature = run_file.reference, run_file.rollout.temperature
    if run_file.run.deterministic:
        # Which rows wait together depends on timing, and a row's last bits on what it lies beside
        settings = replace(settings, tokens_per_batch=1)
    return ReferencePool(settings, cpus["reference"], model, temperature, transport)


def transport_settings(run_file: RunFile, run_dir: Path) -> TransportSettings:
    """The run's transport. Files get a folder of their own below `publish.path`, since a run
    removes what it finds there: named after the run, and told from equal names elsewhere."""
    path = run_file.publish.path
    if path is None:
        return TransportSettings(run_file.publish.transport)
    root = path if "://" in path else str(Path(path).absolute())
    mark = hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:8]
    folder = f"{root.rstrip('/')}/{run_file.run.name}-{mark}"
    return TransportSettings(run_file.publish.transport, folder)


def _scorer_pool(
    run_file: RunFile, cpus: Mapping[str, float], tokenizer: str, run_dir: Path
) -> ScorerPool:
    """Those that a stage calls; they load their models when it opens."""
    called = called_in(run_file)
    products = Products(run_dir)
    return ScorerPool(
        {name: run_file.scorers[name] for name in called},
        {name: cpus[role(name)] for name in called},
        tokenizer,
        run_file.run.deterministic,
        lambda name: model_folder(run_file.scorers[name], products),
    )


def _learner_job(
    run_file: RunFile,
    vocab_size: int,
    run_dir: Path,
    probe: tuple[Int32, ...],
    client: MailboxClient,
    direct: str | None,
) -> LearnerJob:
    return LearnerJob(
        model=run_file.model,
        vocab_size=vocab_size,
        seed=run_file.run.seed,
        settings=run_file.learner,
        stages=_learner_stages(run_file),
        run_dir=str(run_dir),
        deterministic=run_file.run.deterministic,
        probe_rows=probe,
        mailbox=client.mailbox,
        weight_store=client.weight_store,
        is_colocated=run_file.rollout.placement == "colocated",
        direct=direct,
    )


def _learner_stages(run_file: RunFile) -> dict[str, LearnerStage]:
    taking = {
        stage.name: LearnerStage(PRESETS["sft"], 1.0, 1, 1, False, False)
        for stage in run_file.stages
        if stage.needs_learner and stage.kind != "train"
    }
    return taking | {
        stage.name: LearnerStage(
            algorithm=stage.algorithm,
            temperature=run_file.rollout.temperature
            if stage.algorithm.samples_from == "policy"
            else 1.0,
            updates_per_step=stage.updates_per_step,
            epochs_per_step=stage.epochs_per_step,
            write_trajectories=run_file.track.write_trajectories
            and stage.algorithm.samples_from == "policy"
            and stage.trajectories is None,
            own_samples=stage.algorithm.samples_from == "policy"
            and (stage.trajectories is None or _is_of_this_policy(run_file, stage)),
        )
        for stage in run_file.stages
        if stage.kind == "train" and stage.algorithm is not None
    }


def _is_of_this_policy(run_file: RunFile, stage: StageConfig) -> bool:
    """Do the weight versions in what `stage` reads name versions of the weights it starts from?
    Where a stage takes other weights, the policy's versions do not count on."""
    if stage.written_by is None or stage.start_from is not None:
        return False
    writer = named_stage(run_file, parse_stage(f"stage:{stage.written_by}"), stage)
    while writer.kind == "annotate":
        if writer.written_by is None:
            return False
        writer = named_stage(run_file, parse_stage(f"stage:{writer.written_by}"), writer)
    return writer.model is None
