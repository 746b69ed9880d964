"""What a learner rank tells vLLM's own weight transfer, held against the vLLM that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch

from manta.actors.transports.settings import DIRECT
from manta.actors.weight_tensors import unpack
from manta.actors.weights import Weights
from tests.unit.actors.transports.states import after, first
from tests.vllm_here import NEEDS_VLLM

pytestmark = NEEDS_VLLM

ADDRESS = ("10.0.0.1", 4321)


@pytest.mark.parametrize("name", DIRECT)
def test_vllm_knows_both_ends_by_these_names(name: str) -> None:
    from vllm.distributed.weight_transfer.factory import (
        WeightTransferEngineFactory,
        WeightTransferTrainerFactory,
    )

    from manta.actors.transports.direct import trainer_info

    assert trainer_info(name, 0, ADDRESS, 2, first()).backend == name
    for factory in (WeightTransferEngineFactory, WeightTransferTrainerFactory):
        assert name in factory._registry


def test_the_stream_is_the_weights_tensor_by_tensor_in_name_order() -> None:
    from manta.actors.transports.direct import PackedSource

    weights = first(torch.bfloat16)
    weights.data.flags.writeable = False
    source = PackedSource(weights, torch.device("cpu"))
    told, sent = source.metadata(), list(source)
    assert [meta.name for meta in told] == sorted(meta.name for meta in told)
    assert [name for name, _ in sent] == [meta.name for meta in told]
    expected = unpack(weights)
    for meta, (name, tensor) in zip(told, sent, strict=True):
        assert (meta.dtype, meta.shape) == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(tensor, expected[name])


def test_each_engine_s_processes_get_ranks_of_their_own() -> None:
    """By vLLM's own reckoning: the payload that its trainer side makes, as its receiving side
    reads it, for engines of 1, 2 and 4 processes."""
    from vllm.distributed.weight_transfer.nccl_common import (
        NCCLWeightTransferInitInfo,
        worker_init_payload,
    )

    from manta.actors.transports.direct import for_each_engine, trainer_info

    processes = [1, 2, 4]
    info = trainer_info("nccl", 0, ADDRESS, sum(processes), first())
    assert (info.master_address, info.master_port) == ADDRESS
    own = {f: getattr(info, f) for f in ("packed_buffer_size_bytes", "packed_num_buffers")}
    payload = worker_init_payload(
        NCCLWeightTransferInitInfo(
            master_address=info.master_address,
            master_port=info.master_port,
            rank_offset=1,
            world_size=info.world_size,
            packed=info.packed,
            **own,
        )
    )
    opened = [NCCLWeightTransferInitInfo(**each) for each in for_each_engine(payload, processes)]
    ranks = [
        each.rank_offset + i
        for each, count in zip(opened, processes, strict=True)
        for i in range(count)
    ]
    assert [0, *ranks] == list(range(info.world_size))
    assert for_each_engine({"packed": True}, processes) == [{"packed": True}] * 3


@pytest.mark.parametrize("name", DIRECT)
def test_a_tensor_is_sent_whole_and_a_small_model_takes_no_gigabyte(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manta.actors.transports import direct

    weights = first()
    largest = max(spec.end - spec.start for spec in weights.specs)
    for most, expected in ((1 << 30, len(weights.data)), (16, largest)):
        monkeypatch.setattr(direct, "_MOST_AT_ONCE", most)
        info = direct.trainer_info(name, 0, ADDRESS, 1, weights)
        assert info.packed_buffer_size_bytes == expected


class Calls:
    """vLLM's `VLLMWeightSyncClient`: notes what it is asked for; `update_weights` may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.made: list[str] = []
        self.updates: list[dict[str, object]] = []
        self._fails = fails

    def init_weight_transfer_engine(self, init_info: dict[str, object]) -> None:
        self.made.append("init")

    def start_weight_update(self) -> None:
        self.made.append("start")

    def update_weights(self, update_info: dict[str, object]) -> None:
        self.made.append("update")
        if self._fails:
            raise RuntimeError("an engine died")
        self.updates.append(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.made.append("finish")


def sender_of(opened: list[int]) -> object:
    """A `DirectSender` whose trainer-side engine makes vLLM's calls and moves nothing."""
    from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLWeightTransferUpdateInfo,
    )

    from manta.actors.transports.direct import DirectSender

    class Still(TrainerWeightTransferEngine):  # type: ignore[misc]
        init_info_cls = NCCLTrainerInitInfo

        @classmethod
        def trainer_init(cls, init_info, *, client, source=None):  # type: ignore[no-untyped-def]
            opened.append(init_info.world_size)
            client.init_weight_transfer_engine({"rank_offset": 1})
            return cls(client=client, source=source)

        def send_weights(self) -> None:
            meta = self.source.metadata()
            self.client.start_weight_update()
            self.client.update_weights(
                asdict(
                    NCCLWeightTransferUpdateInfo(
                        names=[m.name for m in meta],
                        dtype_names=[str(m.dtype).split(".")[-1] for m in meta],
                        shapes=[list(m.shape) for m in meta],
                    )
                )
            )
            self.client.finish_weight_update()

    return DirectSender("nccl", 0, torch.device("cpu"), Still.trainer_init)


def send(sender: object, weights: Weights, members: Sequence[str], fails: bool = False) -> Calls:
    from manta.actors.transports.direct import DirectSender

    assert isinstance(sender, DirectSender)
    calls = Calls(fails)
    try:
        sender.send(weights, calls, members, len(members), lambda: ADDRESS)
    except RuntimeError:
        assert fails
    return calls


def test_what_is_open_stays_open_while_the_same_engines_meet() -> None:
    opened: list[int] = []
    sender = sender_of(opened)
    weights = first()
    whole = ["init", "start", "update", "finish"]
    assert send(sender, weights, ["a", "b"]).made == whole
    again = send(sender, after(weights, 1, 1e-3), ["a", "b"])
    assert again.made == whole[1:]
    assert again.updates[0]["names"] == [spec.name for spec in weights.specs]
    assert send(sender, weights, ["a"]).made == whole
    assert opened == [3, 2]


def test_after_a_failure_the_next_one_meets_anew() -> None:
    opened: list[int] = []
    sender = sender_of(opened)
    assert send(sender, first(), ["a"], fails=True).made == ["init", "start", "update"]
    assert send(sender, first(), ["a"]).made == ["init", "start", "update", "finish"]
    assert opened == [2, 2]
