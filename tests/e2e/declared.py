"""Prints what a run counts on before and after it names a cluster file; for tests."""

from __future__ import annotations

import os
import sys

import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2

from manta.orchestrator.placement import connect, offered_nodes


def seen(cluster_file: str | None = None) -> str:
    cluster = connect(os.getcwd(), cluster_file)
    try:
        nodes = ", ".join(f"{node.get('CPU', 0):g}" for node in cluster.nodes)
        return f"{cluster.cpus:g} CPUs ({nodes}), {cluster.gpus:g} GPUs, {sorted(offered_nodes())}"
    finally:
        ray.shutdown()


def main() -> None:
    client = GcsClient(address=os.environ["RAY_ADDRESS"])
    print(seen())
    try:
        print(seen(sys.argv[1]))
    finally:
        # Other tests share the cluster
        client.report_cluster_config(autoscaler_pb2.ClusterConfig().SerializeToString())


if __name__ == "__main__":
    main()
