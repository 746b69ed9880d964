"""Starts Ray as a run without a cluster does, and prints what others on the machine and beyond it
could get hold of; for tests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import grpc
import psutil
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from manta.orchestrator.placement import connect


class Worker:
    def environment(self) -> dict[str, str]:
        return dict(os.environ)


def listening() -> list[str]:
    """`PROCESS ADDRESS` of every socket that this process and its children listen on."""
    own = psutil.Process()
    return [
        f"{process.name()} {connection.laddr.ip}"
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def answer_without_token(address: str) -> str:
    """The control store's, to whom asks for a key without a token."""
    with grpc.insecure_channel(address) as channel:
        store = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            store.InternalKVKeys(gcs_service_pb2.InternalKVKeysRequest(prefix=b""), timeout=10)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return str(error.code().name)
    return "answered"


def main() -> None:
    connect(os.getcwd(), handed_on=sys.argv[1:])
    try:
        worker = ray.remote(num_cpus=0)(Worker).remote()
        environment = ray.get(worker.environment.remote(), timeout=60)
        context = ray.get_runtime_context()
        folder = Path(ray._private.worker._global_node.get_session_dir_path()).parent.parent  # type: ignore[union-attr]
        found = {
            "environment": environment,
            "listening": listening(),
            "without token": answer_without_token(context.gcs_address),
            "folder": str(folder),
            "mode": oct(folder.stat().st_mode & 0o777),
        }
    finally:
        ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
