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

from tests.chaos.census import Census, descendants, is_alive, title
from tests.chaos.faults import WORKERS, Fault, Hit
from tests.e2e import runs

GONE_SECONDS = 30.0
LOOK_SECONDS = 1.0
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "dashboard/agent.py", "agent/main.py")
"""What a raylet's own helpers are called, before and after they have named themselves."""
KEPT = ("ray::IDLE", "ray::_AutoscalingCoordinatorActor")
"""What raylets have ready for whatever comes, and an actor that Ray keeps for all jobs."""
STALL_SECONDS = 1.5


class Town:
    """A head without CPUs, where the driver's own actors live, and nodes of `cpus` each, which
    offer a resource by role, one after the other."""

    def __init__(self, nodes: int, cpus: int, roles: Sequence[str]) -> None:
        self._cpus = cpus
        self._offers: dict[Node, str] = {}
        self._census = Census()
        self._looked_at = 0.0
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

    def begin(self) -> None:
        """A run begins: what an earlier one left behind is not its fault."""
        self._census = Census()

    def look(self) -> None:
        """Notes who lives below the raylets; to be called as often as one likes."""
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._look()

    def workers(self, role: str) -> list[psutil.Process]:
        """The processes of a role's living workers, oldest first."""
        name = f"ray::{WORKERS[role]}"
        found = [each for raylet in self._raylets() for each in _children(raylet)]
        return sorted(
            (each for each in found if title(each).startswith(name)),
            key=psutil.Process.create_time,
        )

    def strike(self, fault: Fault) -> Hit:
        """Makes `fault` happen; what was hit, in words, or why nothing was."""
        self._look()
        workers = self.workers(fault.role)
        if not workers:
            return Hit(fault, "there is none", is_delivered=False)
        victim = workers[fault.choice % len(workers)]
        node = self._node_of(victim)
        resource = self._offers.get(node, "head") if node else "no node"
        what = f"process {victim.pid} on {resource or 'a node'}"
        if fault.kind == "lose node":
            if node not in self._offers:
                return Hit(fault, f"{what}, which cannot be lost", is_delivered=False)
            self._lose(node)
            return Hit(fault, what, is_delivered=True)
        if not _signal(victim, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP):
            return Hit(fault, f"{what} had ended", is_delivered=False)
        if fault.kind == "stall":
            threading.Timer(STALL_SECONDS, _signal, (victim, signal.SIGCONT)).start()
        return Hit(fault, what, is_delivered=True)

    def left_over(self) -> list[str]:
        """What is left of a run's processes once they had time to go, those of lost nodes too."""
        deadline = time.monotonic() + GONE_SECONDS
        while True:
            self._look()
            raylets = set(self._raylets())
            found = [
                f"{called} {each.pid}"
                for each, called in self._census.living().items()
                if not _is_rays_own(each, called, raylets)
            ]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def _look(self) -> None:
        self._census.look(self._raylets())
        self._looked_at = time.monotonic()

    def _lose(self, node: Node) -> None:
        """It goes without a word, and another one comes. Who is stopped goes with it, as with a
        machine; the others find out by themselves."""
        below = [each for raylet in _raylets_of(node) for each in descendants(raylet)]
        self._cluster.remove_node(node, allow_graceful=False)
        for each in below:
            with suppress(psutil.NoSuchProcess):
                if each.status() == psutil.STATUS_STOPPED:
                    each.kill()
        self.add_node(self._offers.pop(node))

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


def _signal(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether it was there to get it."""
    with suppress(psutil.NoSuchProcess):
        if is_alive(process):
            process.send_signal(number)
            return True
    return False


def _is_rays_own(process: psutil.Process, called: str, raylets: set[psutil.Process]) -> bool:
    """An agent, or what a living raylet keeps."""
    if any(name in called for name in AGENTS):
        return True
    with suppress(psutil.NoSuchProcess):
        return called.startswith(KEPT) and process.parent() in raylets
    return True


def _raylets_of(node: Node) -> Iterator[psutil.Process]:
    for info in node.all_processes.get("raylet", []):
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(info.process.pid)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return list(process.children())
    return []
