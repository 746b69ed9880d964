"""Tells a head of a node type that may be started, as an autoscaler does, and prints what a run
counts on before and after; for tests."""

from __future__ import annotations

import os

import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2

from manta.orchestrator.placement import connect, offered_nodes


def seen() -> str:
    cluster = connect(os.getcwd())
    try:
        return f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs, {sorted(offered_nodes())}"
    finally:
        ray.shutdown()


def main() -> None:
    client = GcsClient(address=os.environ["RAY_ADDRESS"])
    config = autoscaler_pb2.ClusterConfig()
    group = config.node_group_configs.add(name="learner", min_count=0, max_count=3)
    group.resources.update({"CPU": 100, "GPU": 4, "learner_node": 1})
    print(seen())
    try:
        client.report_cluster_config(config.SerializeToString())
        print(seen())
    finally:
        client.report_cluster_config(autoscaler_pb2.ClusterConfig().SerializeToString())


if __name__ == "__main__":
    main()
