"""Which nodes a role stands on: custom Ray resources that nodes offer by role.

Owns their names and who asks for which. A resource is asked for only where the cluster, or a node
type that its autoscaler may start, offers it: so one run file fits a laptop and a cluster. What a
cluster has is `manta.orchestrator.placement`'s to find out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

ROLLOUT_NODE = "rollout_node"
LEARNER_NODE = "learner_node"
ENVIRONMENT_NODE = "environment_node"
NODE_RESOURCES = (ROLLOUT_NODE, LEARNER_NODE, ENVIRONMENT_NODE)
SHARE = 0.001
"""What a worker asks for of its node resource: a node that offers 1 takes a thousand workers, so
the resource says where a worker may stand and bounds nothing."""

HEAD_NODE = {"node:__internal_head__": SHARE}
"""What the actors ask for that must outlive every worker's node; Ray's head offers it."""

_BY_ROLE = {
    "rollout": ROLLOUT_NODE,
    "environment": ENVIRONMENT_NODE,
    "reward": ENVIRONMENT_NODE,
}


def node_resource(role: str) -> str:
    """The resource of the nodes that `role` (as in `role_needs.role_needs`) stands on. Reference
    workers and scorers stand with the learner, whose nodes do not go away during a run."""
    return _BY_ROLE.get(role, LEARNER_NODE)


def asked(role: str, offered: Collection[str]) -> Mapping[str, float]:
    """What a worker of `role` asks for beside CPUs and GPUs, where nodes offer `offered`."""
    name = node_resource(role)
    return {name: SHARE} if name in offered else {}
