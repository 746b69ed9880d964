"""The run file as one strict tree of frozen values, each part owned by the part it configures.

Loads no torch, ray or vllm. How YAML becomes this tree is in `manta.orchestrator.run_file`; what
must fit together is checked in `manta.orchestrator.cross_check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from manta.actors.backends.schedule import Schedule
from manta.actors.backends.settings import LearnerSettings
from manta.actors.engines.settings import EngineSettings
from manta.actors.models.spec import ModelSpec
from manta.actors.scorers.settings import ScorerConfig
from manta.actors.worker_range import WorkerRange, range_of
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import Json
from manta.orchestrator.curriculum_settings import CurriculumSettings
from manta.orchestrator.reference_config import ReferenceConfig, StageReferenceConfig


@dataclass(frozen=True, slots=True)
class RunConfig:
    """`dir` is the folder that holds run directories; this run's is `dir/name`. What cannot be
    healed within the run, such as a wait for workers of more than `deadline_minutes`, has it begin
    anew from its newest checkpoint, at most `max_restarts` times in a row without a newly committed
    one; then it ends with the error. `cluster` is the file of the cluster that it runs on, whose
    autoscaler may start the nodes that the file declares. `variables` are names of environment
    variables that workers get although they hold secrets."""

    name: str
    seed: int = 0
    dir: str = "runs"
    max_hours: float | None = None
    deadline_minutes: float = 30.0
    deterministic: bool = False
    max_restarts: int = 2
    cluster: str | None = None
    variables: tuple[str, ...] = ()

    @property
    def deadline_seconds(self) -> float:
        return self.deadline_minutes * 60


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """A task family by registry name or `module:attribute`; `options` go to its constructor."""

    name: str
    options: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComponentConfig:
    """A reward component: registry name (default: the component's key) and its options."""

    reward: str
    options: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """`formula` combines the components by name: numbers, + - * / ( ), min, max. `gold` is a
    component outside of it, the true reward, which what trains is held against. `within` weighs
    what components say of turns, steps and tokens, by component: rewards within a sample."""

    formula: str
    components: Mapping[str, ComponentConfig]
    gold: str | None = None
    within: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Held-out evaluation. `metric` is the component that counts as accuracy (above 0.5 is right);
    `gold_likelihood` also reports the mean log-prob per token of the gold answers."""

    every_steps: int = 10
    prompts: int = 256
    samples_per_prompt: int = 1
    temperature: float = 0.0
    metric: str = "correct"
    gold_likelihood: bool = False


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage. `trajectories` is what to learn from instead of sampling, or what to annotate: a
    folder of written trajectories, or `stage:NAME`, the product of an earlier stage.
    `companions_from: stage:NAME` is the product that a companion of kind `written` is taken from.

    Kinds: `train`; `generate` (sample and write trajectories, train nothing); `evaluate`;
    `annotate` (read trajectories, score them with the stage's reward, and with the reference's
    log-probs if `reference_logprobs`, and write them); `merge` (`models` become their average,
    weighed by `weights`; the policy becomes that, if `becomes_policy`).
    `start_from` names the weights that a train stage starts from, `model` those that sample in a
    generate or evaluate stage; None is the policy as the stage before left it. `tag` is a text that
    is put before every prompt of the stage (None: see `prompt_tag`).
    `env`, `reward` and `evaluate` of a stage default to those at the top of the run file,
    `reference` to what is said there of what it is, `learning_rate`, `warmup_steps` and
    `decay` to the learner's, `max_staleness` to the rollout's. `curriculum` says in which
    order tasks come from the second epoch on.
    """

    name: str
    kind: Literal["train", "generate", "evaluate", "annotate", "merge"] = "train"
    algorithm: AlgorithmSettings | None = None
    env: EnvConfig | None = None
    reward: RewardConfig | None = None
    evaluate: EvaluateConfig | None = None
    trajectories: str | None = None
    companions_from: str | None = None
    start_from: str | None = None
    model: str | None = None
    tag: str | None = None
    models: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    becomes_policy: bool = True
    reference: StageReferenceConfig | None = None
    reference_logprobs: bool = False
    steps: int = 0
    prompts_per_step: int = 1
    updates_per_step: int = 1
    epochs_per_step: int = 1
    learning_rate: float | None = None
    warmup_steps: int | None = None
    decay: Literal["constant", "linear"] | None = None
    max_staleness: int | None = None
    curriculum: CurriculumSettings | None = None

    @property
    def right_component(self) -> str | None:
        """The component of the rewards by which a sample is right: the one that evaluation counts,
        else `correct`; None where there is no such."""
        name = self.evaluate.metric if self.evaluate is not None else "correct"
        return name if self.reward is not None and name in self.reward.components else None

    @property
    def prompt_tag(self) -> str:
        """What stands before the prompts: its `tag`, else its algorithm's best one."""
        if self.tag is not None:
            return self.tag
        condition = None if self.algorithm is None else self.algorithm.condition
        return "" if condition is None else condition.best

    @property
    def samples_to_train(self) -> bool:
        """Does it train on what the policy samples meanwhile?"""
        return (
            self.kind == "train"
            and self.algorithm is not None
            and self.algorithm.samples_from == "policy"
            and self.trajectories is None
        )

    @property
    def makes_policy(self) -> bool:
        """Does the run go on with other weights than it came with?"""
        return self.kind == "train" or (self.kind == "merge" and self.becomes_policy)

    @property
    def needs_learner(self) -> bool:
        """Ranks train, or take weights that engines are to serve."""
        return self.makes_policy or (
            self.kind in ("generate", "evaluate") and self.model is not None
        )

    @property
    def compares_with_reference(self) -> bool:
        """Does what it makes, or trains on, need the log-probs of a reference? Who computes them
        is `manta.orchestrator.reference_use`'s."""
        if self.kind == "annotate":
            return self.reference_logprobs
        return (
            self.kind == "train" and self.algorithm is not None and self.algorithm.needs_reference
        )

    @property
    def written_by(self) -> str | None:
        """What `trajectories` says after `stage:`, if it names a stage."""
        if self.trajectories is None or not self.trajectories.startswith("stage:"):
            return None
        return self.trajectories.removeprefix("stage:")


CALLS_PER_WORKER = 4
"""Calls of a step to an environment worker, unless the run file says how many groups travel."""


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """Environment workers; `groups_per_call` tasks travel together (0: see
    `RunFile.groups_per_call`)."""

    workers: int | WorkerRange = 1
    groups_per_call: int = 0

    @property
    def sizes(self) -> WorkerRange:
        return range_of(self.workers)


@dataclass(frozen=True, slots=True)
class RewardWorkersConfig:
    workers: int | WorkerRange = 1
    deadline_seconds: float = 30.0

    @property
    def sizes(self) -> WorkerRange:
        return range_of(self.workers)


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """How weights travel and what proves them. `path` is the disk transport's folder or URI.

    Over the probe's log-probs, `probe_tolerance` bounds |engine - learner| and `engine_tolerance`
    |engine - engine|, of engines that run one program on one kind of device.
    """

    transport: Literal["object_store", "disk", "nccl", "ipc"] = "object_store"
    path: str | None = None
    probe_tolerance: float = 1e-3
    engine_tolerance: float = 1e-4


@dataclass(frozen=True, slots=True)
class MismatchGuardConfig:
    """Bounds of the estimated KL divergence between engine and learner, in nats per token, over
    tokens for which both had the same weights. Past `warn_kl` the run says so; past `limit_kl` it
    does `action`: `stop` ends it; `pause_publish` keeps the step's weights from the engines, and
    all workers alive, until Ctrl-C or the deadline ends it; `warn` goes on."""

    warn_kl: float = 1e-3
    limit_kl: float = 0.05
    action: Literal["stop", "pause_publish", "warn"] = "stop"


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """Every `every_seconds` each worker is asked for a sign of life. One that has given none for
    `frozen_after_seconds` is named and killed; one that is still starting has `start_seconds` (by
    default `run.deadline_minutes`)."""

    every_seconds: float = 2.0
    frozen_after_seconds: float = 60.0
    start_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """Beside those that end a stage the newest `keep` stay, and the `keep_best` of the highest
    `best_by`, a metric of their step. `path` is a folder or URI to keep them in, instead of the run
    directory."""

    every_steps: int = 20
    keep: int = 3
    keep_best: int = 0
    best_by: str = "eval/accuracy"
    path: str | None = None


@dataclass(frozen=True, slots=True)
class WandbConfig:
    project: str
    mode: Literal["online", "offline"] = "online"
    entity: str | None = None


@dataclass(frozen=True, slots=True)
class TrackConfig:
    wandb: WandbConfig | None = None
    write_trajectories: bool = True


@dataclass(frozen=True, slots=True)
class RunFile:
    """A whole run file, resolved."""

    run: RunConfig
    model: ModelSpec
    stages: tuple[StageConfig, ...]
    rollout: EngineSettings = field(default_factory=EngineSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    scorers: Mapping[str, ScorerConfig] = field(default_factory=dict)
    environment: WorkersConfig = field(default_factory=WorkersConfig)
    reward_workers: RewardWorkersConfig = field(default_factory=RewardWorkersConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    mismatch_guard: MismatchGuardConfig = field(default_factory=MismatchGuardConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def schedule(self, stage: StageConfig) -> Schedule:
        """The learning rate over `stage`: its own settings, else the learner's."""
        learner = self.learner
        return Schedule(
            learner.learning_rate if stage.learning_rate is None else stage.learning_rate,
            learner.warmup_steps if stage.warmup_steps is None else stage.warmup_steps,
            learner.decay if stage.decay is None else stage.decay,
        )

    def max_staleness(self, stage: StageConfig) -> int:
        """How many steps the weights that sample may be behind in `stage`."""
        own = stage.max_staleness
        return self.rollout.max_staleness if own is None else own

    def reference_of(self, stage: StageConfig) -> StageReferenceConfig:
        """What the reference policy is in `stage`."""
        top = self.reference
        return stage.reference or StageReferenceConfig(
            top.model, top.refresh, top.combine, top.contrast
        )

    def before(self, stage: StageConfig) -> tuple[StageConfig, ...]:
        """The stages that stand before `stage`."""
        return self.stages[: self.stages.index(stage)]

    def groups_per_call(self, stage: StageConfig) -> int:
        """How many groups of `stage` travel to an environment worker, and back, in one call.

        Where the run file says 0, enough for `CALLS_PER_WORKER` calls a step to every worker: a
        step waits for all of its groups, and each call costs the driver time. Where a group that
        ends before the others makes room for another one, every group travels alone.
        """
        if self.environment.groups_per_call:
            return self.environment.groups_per_call
        is_race = self.rollout.oversample > 1 or self.rollout.redundant_samples > 0
        algorithm = stage.algorithm
        drops = algorithm is not None and algorithm.filters_groups
        if stage.samples_to_train and (is_race or drops):
            return 1
        return max(1, stage.prompts_per_step // (CALLS_PER_WORKER * self.environment.sizes.max))

    @property
    def start_seconds(self) -> float:
        """What a worker may take to start."""
        return self.health.start_seconds or self.run.deadline_seconds

    @property
    def needs_rollout(self) -> bool:
        """Does any stage sample: to train on, to write, or to evaluate?"""
        return any(
            stage.kind in ("generate", "evaluate")
            or stage.evaluate is not None
            or (
                stage.kind == "train"
                and stage.algorithm is not None
                and stage.algorithm.samples_from == "policy"
            )
            for stage in self.stages
        )

    @property
    def needs_learner(self) -> bool:
        return any(stage.needs_learner for stage in self.stages)

    @property
    def needs_reward(self) -> bool:
        return any(stage.reward is not None for stage in self.stages)
