"""How the ranks of a learner group find each other, and become torch's process group.

torch's own ways (`env://`, `tcp://`) have the store on rank 0 listen on all interfaces, where
whoever reaches the machine may read and write it. This one listens at the address by which Ray
knows the node, which is localhost on a Ray of one's own; a rank that is alone listens nowhere.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import torch.distributed as dist
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

_PATIENCE = timedelta(minutes=30)
"""For the others, here and in every collective call: a rank may load or save meanwhile."""

Address: TypeAlias = tuple[str, int]
Broadcast: TypeAlias = Callable[[Address | None], Address]
"""Called on all ranks; returns what rank 0 gave."""


def join_process_group(
    backend: str, rank: int, world_size: int, host: str, broadcast: Broadcast
) -> None:
    """Waits for all ranks of a group; `host` is where this one can be reached. Raises DistError
    where the others do not come."""
    store = HashStore() if world_size == 1 else _store(rank, world_size, host, broadcast)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_PATIENCE
    )


def _store(rank: int, world_size: int, host: str, broadcast: Broadcast) -> TCPStore:
    if rank > 0:
        return _joined(broadcast(None), world_size)
    listener = _listen(host)
    return _joined(broadcast(listener.getsockname()[:2]), world_size, listener)


def _listen(host: str) -> socket.socket:
    """At a free port of `host` alone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)


def _joined(address: Address, world_size: int, listener: socket.socket | None = None) -> TCPStore:
    """The store of so many ranks at `address`, where rank 0 has a `listener`, which it gives away.
    Waits for rank 0, and there for all."""
    host, port = address
    return TCPStore(
        host,
        port,
        world_size,
        is_master=listener is not None,
        timeout=_PATIENCE,
        master_listen_fd=None if listener is None else listener.detach(),
    )
