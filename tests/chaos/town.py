"""Several raylets on this machine, and the processes of a run's workers on them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests.chaos.faults import WORKERS, Fault
from tests.e2e import runs

GONE_SECONDS = 30.0
STALL_SECONDS = 1.5


class Town:
    """A head without CPUs, where the driver's own actors live, and nodes of `cpus` each, which
    offer a resource by role, one after the other."""

    def __init__(self, nodes: int, cpus: int, roles: Sequence[str]) -> None:
        self._cpus = cpus
        self._offers: dict[Node, str] = {}
        # A folder of its own: another Ray on this machine must not take this one for the current.
        self._folder = Path("/tmp") / f"manta-town-{os.getpid()}"
        # Where Ray notes the address all the same, in a folder that it does not make
        Path("/tmp/ray").mkdir(exist_ok=True)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "temp_dir": str(self._folder),
            },
        )
        for _, resource in zip(range(nodes), itertools.cycle(roles or [""]), strict=False):
            self.add_node(resource)

    def add_node(self, resource: str) -> None:
        """`resource`: what it offers beside CPUs, if anything."""
        resources = {resource: 1} if resource else {}
        node = self._cluster.add_node(num_cpus=self._cpus, resources=resources)
        self._offers[node] = resource

    def drain(self, resource: str, seconds: int) -> None:
        """Gives a node that offers `resource` a notice, as a cloud does of its spot instances."""
        node = next(node for node, offered in self._offers.items() if offered == resource)
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "drain-node",
            f"--address={self._cluster.address}", f"--node-id={node.node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=a notice",
            f"--deadline-remaining-seconds={seconds}",
        ]  # fmt: skip
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def close(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> runs.Environment:
        return {**runs.environment(), "RAY_ADDRESS": str(self._cluster.address)}

    def workers(self, role: str) -> list[psutil.Process]:
        """The processes of a role's living workers, oldest first."""
        title = f"ray::{WORKERS[role]}"
        found = [each for raylet in self._raylets() for each in _children(raylet)]
        return sorted(
            (each for each in found if _title(each).startswith(title)),
            key=psutil.Process.create_time,
        )

    def strike(self, fault: Fault) -> str:
        """Makes `fault` happen; what was hit, in words, or why nothing was."""
        workers = self.workers(fault.role)
        if not workers:
            return f"{fault}: there is none"
        victim = workers[fault.choice % len(workers)]
        node = self._node_of(victim)
        resource = self._offers.get(node, "head") if node else "no node"
        if fault.kind == "lose node" and node in self._offers:
            # It goes without a word, and another one comes
            self._cluster.remove_node(node, allow_graceful=False)
            self.add_node(self._offers.pop(node))
        else:
            _signal(victim, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
            if fault.kind == "stall":
                threading.Timer(STALL_SECONDS, _signal, (victim, signal.SIGCONT)).start()
        return f"{fault}: process {victim.pid} on {resource or 'a node'}"

    def left_over(self) -> list[str]:
        """What is left of a run's workers once they had time to go."""
        deadline = time.monotonic() + GONE_SECONDS
        while True:
            found = [
                f"{_title(each)} {each.pid}" for role in WORKERS for each in self.workers(role)
            ]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def _node_of(self, worker: psutil.Process) -> Node | None:
        with suppress(psutil.NoSuchProcess):
            for node in self._cluster.list_all_nodes():
                if worker.ppid() in {raylet.pid for raylet in _raylets_of(node)}:
                    return node
        return None

    def _raylets(self) -> Iterator[psutil.Process]:
        for node in self._cluster.list_all_nodes():
            yield from _raylets_of(node)


@contextmanager
def town(nodes: int = 2, cpus: int = 3, roles: Sequence[str] = ()) -> Iterator[Town]:
    made = Town(nodes, cpus, roles)
    try:
        yield made
    finally:
        made.close()


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _raylets_of(node: Node) -> Iterator[psutil.Process]:
    for info in node.all_processes.get("raylet", []):
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(info.process.pid)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return list(process.children())
    return []


def _title(process: psutil.Process) -> str:
    """What Ray calls the process; empty where it has gone."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""
