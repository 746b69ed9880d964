"""What each role of a run asks of the cluster.

Owns the CPUs and GPUs that a worker of a role reserves, and how many workers there are. What a
cluster has is `manta.orchestrator.placement`'s to find out, on which nodes a role stands
`manta.orchestrator.role_resources`'.
"""

from __future__ import annotations

from dataclasses import dataclass

from manta.actors.transports.settings import DIRECT
from manta.actors.worker_range import WorkerRange
from manta.orchestrator.config import RunFile
from manta.orchestrator.reference_use import stages_with_reference
from manta.orchestrator.scorers import called_in, role

SHARED_CPUS = 0.5
"""What a worker of a computing role reserves when `threads` is 0: it shares the node's cores, and
phases that alternate do not need them at the same time."""
WAITING_CPUS = 0.1
"""What a worker reserves that mostly waits for others, or computes in short bursts."""


@dataclass(frozen=True, slots=True)
class RoleNeed:
    """`workers` workers of `role`, each with `cpus` and `gpus`, and up to so many `more` where
    there is work for them."""

    role: str
    workers: int
    cpus: float
    gpus: float
    more: int = 0

    @property
    def sizes(self) -> WorkerRange:
        return WorkerRange(self.workers, self.workers + self.more)


def role_needs(run_file: RunFile) -> tuple[RoleNeed, ...]:
    """What each role of the run asks for; roles that no stage needs are left out."""
    is_colocated = run_file.rollout.placement == "colocated"
    sizes = run_file.environment.sizes
    needs = [RoleNeed("environment", sizes.min, WAITING_CPUS, 0, sizes.span)]
    if run_file.needs_rollout:
        rollout = run_file.rollout
        cpus = _computing(rollout.threads)
        if rollout.engine == "simulated":
            cpus = float(rollout.threads) or WAITING_CPUS
        gpus = 0 if is_colocated else rollout.devices
        least = rollout.sizes.min + rollout.standby
        needs.append(RoleNeed("rollout", least, cpus, gpus, rollout.sizes.span))
    if run_file.needs_reward:
        sizes = run_file.reward_workers.sizes
        needs.append(RoleNeed("reward", sizes.min, WAITING_CPUS, 0, sizes.span))
    for name in called_in(run_file):
        scorer = run_file.scorers[name]
        cpus = float(scorer.threads) or WAITING_CPUS
        needs.append(RoleNeed(role(name), scorer.workers, cpus, scorer.devices))
    if stages_with_reference(run_file):
        reference = run_file.reference
        cpus = _computing(reference.threads)
        needs.append(RoleNeed("reference", reference.workers, cpus, 0))
    if run_file.needs_learner:
        learner = run_file.learner
        cpus = _computing(learner.threads)
        # It owns the GPUs that engines stand on, and sends from one what goes to engines directly
        needs_gpu = learner.devices > 0 or (is_colocated and run_file.rollout.devices > 0)
        needs_gpu |= run_file.publish.transport in DIRECT
        gpus = 1 if needs_gpu else 0
        needs.append(RoleNeed("learner", learner.ranks.min, cpus, gpus, learner.ranks.span))
    return tuple(needs)


def placement_needs(run_file: RunFile) -> list[tuple[str, int, float]]:
    """(role, workers, CPUs each) of every role that the run needs."""
    return [(need.role, need.workers, need.cpus) for need in role_needs(run_file)]


def _computing(threads: int) -> float:
    return float(threads) if threads > 0 else SHARED_CPUS
