"""A learner rank's part in handing weights over directly.

Owns the newest weights until the next ones are there, and the calls to engines that vLLM's
trainer-side end makes. What moves the bytes is `manta.actors.transports.direct`; when and to whom,
the driver says.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import ray

from manta.actors.engines.vllm_arrivals import TransferInfo
from manta.actors.hand_over import HandedOver, Receiver
from manta.actors.transports.direct import DirectSender, for_each_engine
from manta.actors.weights import Receipt, Weights


class MeetingCalls:
    """vLLM's `VLLMWeightSyncClient` over the engines of one meeting: each call goes to all of them
    and waits for all. `receipts` are there once the last call is made.

    Raises ray.exceptions.RayError where an engine died or failed.
    """

    def __init__(self, receivers: Sequence[Receiver], weights: Weights) -> None:
        self._receivers, self._weights = receivers, weights
        self.receipts: dict[str, Receipt] = {}

    def init_weight_transfer_engine(self, init_info: TransferInfo) -> None:
        processes = [receiver.num_processes for receiver in self._receivers]
        infos = for_each_engine(init_info, processes)
        ray.get(
            [
                receiver.worker.open_transfer.remote(info)
                for receiver, info in zip(self._receivers, infos, strict=True)
            ]
        )

    def start_weight_update(self) -> None:
        size = len(self._weights.data)
        ray.get([receiver.worker.begin_transfer.remote(size) for receiver in self._receivers])

    def update_weights(self, update_info: TransferInfo) -> None:
        ray.get([receiver.worker.take_transfer.remote(update_info) for receiver in self._receivers])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        version, sha256 = self._weights.version, self._weights.sha256
        found: list[Receipt] = ray.get(
            [receiver.worker.end_transfer.remote(version, sha256) for receiver in self._receivers]
        )
        names = [receiver.name for receiver in self._receivers]
        self.receipts = dict(zip(names, found, strict=True))


class Meetings:
    """Rank `rank`'s side of all hand-overs of a run by the direct transport `name`, as `sender`
    does it."""

    def __init__(self, name: str, rank: int, sender: DirectSender) -> None:
        self._name, self._rank, self._sender = name, rank, sender
        self._weights: Weights | None = None

    @property
    def needs_weights(self) -> bool:
        """Over ipc every rank lends the engine on its own GPU the weights, over nccl rank 0 sends
        alone."""
        return self._rank == 0 or self._name == "ipc"

    def keep(self, weights: Weights) -> None:
        """`weights` are what the next orders are about."""
        self._weights = weights

    def meet(self, receivers: Sequence[Receiver]) -> HandedOver:
        """Brings the weights kept to `receivers`; failing is an answer too, since the learner can
        go on and the driver knows another way."""
        if not self.needs_weights:
            return HandedOver()
        weights = self.kept
        calls = MeetingCalls(receivers, weights)
        try:
            self._sender.send(
                weights,
                calls,
                [receiver.name for receiver in receivers],
                sum(receiver.num_processes for receiver in receivers),
                _free_address,
            )
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            self._sender.close()
            cause = str(error).strip().rpartition("\n")[2]  # below an engine's traceback
            return HandedOver(failure=f"{self._name} failed: {cause}")
        return HandedOver(calls.receipts, len(weights.data))

    @property
    def kept(self) -> Weights:
        assert self._weights is not None, "ordered before there were weights"
        return self._weights


def _free_address() -> tuple[str, int]:
    """This node's address and a port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return host, probe.getsockname()[1]
