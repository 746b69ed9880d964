"""A cluster whose nodes Ray's own autoscaler starts, as processes of this machine, and ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.util.state import list_nodes

from tests.e2e import runs
from tests.e2e.heads import free_port, head

_HEAD = {"CPU": 4, "learner_node": 1, "environment_node": 1}
"""What the head offers: who stands there keeps no other node from being taken back."""
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_LISTS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


class Autoscaled:
    """`environment`: in which commands reach the head. `file` declares the node types."""

    def __init__(self, environment: runs.Environment, file: Path) -> None:
        self.environment, self.file = environment, file

    def nodes(self) -> list[str]:
        """The ids of living nodes beside the head, oldest first."""
        found = list_nodes(
            address=self.environment["RAY_API_SERVER_ADDRESS"],
            filters=[("state", "=", "ALIVE"), ("is_head_node", "=", "False")],
            # While a node joins, Ray may say that it cannot tell of all
            raise_on_missing_output=False,
        )
        return sorted(node.node_id for node in found)

    def notify(self, node: str, seconds: int) -> None:
        """Gives `node` a notice, as a cloud does of its spot instances."""
        command = [
            "ray", "drain-node", f"--address={self.environment['RAY_ADDRESS']}",
            f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=a notice", f"--deadline-remaining-seconds={seconds}",
        ]  # fmt: skip
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def lose(self, *nodes: str) -> None:
        """Without a word, and all at once."""
        head = psutil.Process(int(self.environment["PID_OF_HEAD"]))
        raylets = [
            each
            for each in head.children(recursive=True)
            if each.name() == "raylet" and any(node in " ".join(each.cmdline()) for node in nodes)
        ]
        assert len(raylets) == len(nodes)
        for each in raylets:
            each.kill()


@contextmanager
def autoscaled(folder: Path, resources: dict[str, float], most: int) -> Iterator[Autoscaled]:
    """A head of 4 CPUs, and up to `most` nodes with these `resources`, which its autoscaler starts
    as they are asked for. Files go to `folder`."""
    gcs = free_port()
    config = {
        "cluster_name": "fake",
        "max_workers": most,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 3 / 60,
        # Called by its own name Ray's provider wants a file that Ray's wheel leaves out
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": f"127.0.0.1:{gcs}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": _HEAD, "node_config": {}, "max_workers": 0},
            "worker": {"resources": resources, "node_config": {}, "max_workers": most},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in _LISTS},
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(config))
    variables = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        # A node that gives no sign is given up after 2 s, not 15
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "4",
    }
    offered = {name: amount for name, amount in _HEAD.items() if name != "CPU"}
    options = [f"--autoscaling-config={file}", f"--resources={json.dumps(offered)}"]
    with head(folder / "head.log", gcs, options, variables) as environment:
        yield Autoscaled(environment, file)
