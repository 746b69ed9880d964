"""How much the driver's process gets to see of a batch: `manta` under a tally of what it receives.

Two counts, taken at each object that Ray hands to Python in this process: the bytes of the objects
so far, and the bytes that its TCP connections have received so far. Objects in shared memory cost
nothing until Python asks for them; then they count as handed over. Runs as a command that takes
the arguments of `manta`, and appends `seconds handed_over received` to a file.

    python -m benchmarks.received_bytes FILE train RUN.yaml
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ray._private.serialization import SerializationContext

from manta.orchestrator.cli import main as manta

_BYTES_RECEIVED = struct.Struct("=128xQ")
"""Where `tcpi_bytes_received` stands in Linux's `struct tcp_info`."""


@dataclass(frozen=True, slots=True)
class Count:
    """Bytes of Ray objects, and of TCP connections, up to `seconds` since the epoch."""

    seconds: float
    handed_over: int
    received: int


def tally_into(path: Path) -> None:
    """From now on every object that Ray hands to this process is counted, a line each."""
    original = SerializationContext.deserialize_objects
    handed_over = 0
    file = path.open("a", encoding="utf-8", buffering=1)

    def counted(self, serialized, *arguments):  # type: ignore[no-untyped-def]
        nonlocal handed_over
        for data, metadata, *_ in serialized:
            handed_over += len(data or b"") + len(metadata or b"")
        print(time.time(), handed_over, tcp_bytes_received(), file=file)
        return original(self, serialized, *arguments)

    SerializationContext.deserialize_objects = counted  # type: ignore[method-assign]


def tcp_bytes_received() -> int:
    """Over the TCP connections that this process has open."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        # Others may close it meanwhile.
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                total += _received(int(name))
    return total


def _received(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.proto != socket.IPPROTO_TCP:
            return 0
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        return int(_BYTES_RECEIVED.unpack(info)[0])


def read_counts(path: Path) -> list[Count]:
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Count(float(row[0]), int(row[1]), int(row[2])) for row in rows]


def by_step(counts: Sequence[Count], ends: Sequence[float]) -> list[tuple[int, int]]:
    """(handed over, received) between each end of a step and the next; `ends` in epoch seconds,
    ascending. What came by an end is what the last count before it says."""
    at = []
    for end in ends:
        before = [count for count in counts if count.seconds <= end]
        at.append((before[-1].handed_over, before[-1].received) if before else (0, 0))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(at)]


def main(arguments: Sequence[str]) -> int:
    path, *command = arguments
    tally_into(Path(path))
    return manta(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
