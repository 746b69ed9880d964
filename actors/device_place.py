"""Where in a cluster a process computes, and which place an engine has beside learner ranks.

Plain values: asking Ray for a place, or for an actor at one, is done where actors are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DevicePlace:
    """A node by Ray's id, and the ids of its GPUs as CUDA_VISIBLE_DEVICES takes them there; none
    where the process computes on the node's CPUs."""

    node: str
    devices: tuple[str, ...] = ()

    def environment(self) -> Mapping[str, str]:
        """For an actor that reserves no GPU, since the rank here has: what lets it see this one.

        Ray leaves the variable alone for such an actor, unless it is told to hide every GPU.
        """
        if not self.devices:
            return {}
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(self.devices),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }


def beside(ranks: Sequence[DevicePlace], workers: int, devices: int) -> list[DevicePlace]:
    """Places of `workers` engines of `devices` GPUs each (0: on CPUs) beside `ranks`, in order.

    An engine of several GPUs has those of as many ranks. Raises ValueError where ranks and engines
    do not come out even, an engine would span nodes, or a rank has other devices than are asked.
    """
    each = max(1, devices)
    if len(ranks) != workers * each:
        raise ValueError(
            f"rollout.placement: colocated puts {workers} engines x {each} devices beside "
            f"{len(ranks)} learner ranks: there must be as many ranks as devices"
        )
    places = []
    for start in range(0, len(ranks), each):
        group = ranks[start : start + each]
        found = [len(rank.devices) for rank in group]
        if any(count != min(1, devices) for count in found):
            raise ValueError(
                f"rollout.placement: colocated wants {min(1, devices)} GPUs on each learner rank, "
                f"ranks {start} to {start + each - 1} have {found}: set rollout.devices to what "
                "the learner computes on"
            )
        if len({rank.node for rank in group}) > 1:
            raise ValueError(
                f"rollout.placement: an engine of {each} devices stands beside learner ranks "
                f"{start} to {start + each - 1}, and Ray placed these on several nodes: lower "
                "rollout.devices to GPUs of one node, or set rollout.placement: disaggregated"
            )
        places.append(DevicePlace(group[0].node, tuple(d for rank in group for d in rank.devices)))
    return places
