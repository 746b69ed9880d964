"""The process group of a learner of one rank that nobody has made a group for.

Backends that share parameters out work over a process group always; one rank is its simplest case.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from manta.actors.backends.settings import ON_CPU, ON_GPU


def group_or_solo(group: dist.ProcessGroup | None, device: torch.device) -> dist.ProcessGroup:
    """`group`, or the default group; if there is none, it is made here, of this process alone, for
    tensors on `device`."""
    if group is not None:
        return group
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        backend = ON_GPU if device.type == "cuda" else ON_CPU
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    assert dist.group.WORLD is not None
    return dist.group.WORLD
