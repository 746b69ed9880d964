"""The head of the cluster that a run has joined: is it still there?

Calls to workers need not fail when it goes, and Ray ends the driver a minute later without a word
to the run's own account. Owns how often it is looked for, and what is told.
"""

from __future__ import annotations

import asyncio
import socket

_LOOK_SECONDS = 5.0
_MISSES = 2


class HeadLost(RuntimeError):
    """The cluster is gone, and with it everything but the run directory."""


def lost_head(address: str) -> str:
    """What to tell where nobody listens at `address`, that of the cluster's control store; empty
    where somebody does, and where there is no address: a Ray of one's own goes with its process."""
    host, _, port = address.rpartition(":")
    if not host:
        return ""
    try:
        with socket.create_connection((host, int(port)), _LOOK_SECONDS):
            return ""
    except OSError as error:
        return (
            f"the head of the Ray cluster at {address} is gone ({error}), and with it the cluster: "
            "start one anew, then the same command, which goes on from the newest checkpoint"
        )


async def watch_head(address: str, seconds: float = _LOOK_SECONDS) -> None:
    """Raises HeadLost once nobody has answered twice in a row, looked for every so many `seconds`.
    Without an address it waits for ever."""
    misses = 0
    while True:
        await asyncio.sleep(seconds)
        lost = await asyncio.to_thread(lost_head, address)
        misses = misses + 1 if lost else 0
        if misses == _MISSES:
            raise HeadLost(lost)
