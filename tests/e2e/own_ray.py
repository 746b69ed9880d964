"""Starts Ray as a run without a cluster does, with two learner ranks that have met, and prints what
others on the machine and beyond it could get hold of; for tests."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import ray
import ray.train
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.train.collective import broadcast_from_rank_zero

from manta.actors.backends.settings import ON_CPU
from manta.actors.rendezvous import join_process_group
from manta.orchestrator.learner_fit import Ranks, RankTrainer
from manta.orchestrator.placement import connect
from tests.e2e.sockets import listening


class Worker:
    def environment(self) -> dict[str, str]:
        return dict(os.environ)


def answer_without_token(address: str) -> str:
    """The control store's, to whom asks for a key without a token."""
    with grpc.insecure_channel(address) as channel:
        store = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            store.InternalKVKeys(gcs_service_pb2.InternalKVKeysRequest(prefix=b""), timeout=10)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return str(error.code().name)
    return "answered"


def meet(config: dict[str, str]) -> None:
    """A learner rank that has met the other, and does nothing until somebody has looked."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    join_process_group(ON_CPU, rank, context.get_world_size(), host, broadcast_from_rank_zero)
    Path(config["folder"], f"met-{rank}").touch()
    while not Path(config["folder"], "looked").exists():
        time.sleep(0.05)


@contextmanager
def two_ranks() -> Iterator[None]:
    """They stand while the context is open."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = RankTrainer(
            meet,
            train_loop_config={"folder": folder},
            backend_config=Ranks(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=2, resources_per_worker={"CPU": 0.5}
            ),
            run_config=ray.train.RunConfig(storage_path=folder),
        )
        fit = threading.Thread(target=trainer.fit)
        fit.start()
        while fit.is_alive() and len(list(Path(folder).glob("met-*"))) < 2:
            time.sleep(0.05)
        try:
            yield
        finally:
            Path(folder, "looked").touch()
            fit.join()


def look() -> dict[str, object]:
    worker = ray.remote(num_cpus=0)(Worker).remote()
    environment = ray.get(worker.environment.remote(), timeout=60)
    context = ray.get_runtime_context()
    folder = Path(ray._private.worker._global_node.get_session_dir_path()).parent.parent  # type: ignore[union-attr]
    return {
        "environment": environment,
        "listening": listening(os.getpid()),
        "without token": answer_without_token(context.gcs_address),
        "folder": str(folder),
        "mode": oct(folder.stat().st_mode & 0o777),
    }


def main() -> None:
    connect(os.getcwd(), handed_on=sys.argv[1:])
    try:
        with two_ranks():
            found = look()
    finally:
        ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
