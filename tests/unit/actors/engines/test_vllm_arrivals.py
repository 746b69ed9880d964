"""Weights that arrive through vLLM's own transfer: hashed on the way in, handles made plain."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from manta.actors.engines.vllm_arrivals import Arrivals, from_plain, plain
from manta.actors.weight_tensors import pack, unpack
from manta.actors.weights import Weights
from tests.unit.actors.transports.states import first
from tests.vllm_here import NEEDS_VLLM


class Receiving(nn.Module):
    """Loads weights as vLLM's models do, in whatever parts they come."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        new = dict(weights)
        self.loaded |= new
        return set(new)


def arrive(weights: Weights, parts: int) -> tuple[Receiving, str]:
    model = Receiving()
    arrivals = Arrivals(model)
    tensors = list(unpack(weights).items())
    for i in range(parts):
        part = tensors[i * len(tensors) // parts : (i + 1) * len(tensors) // parts]
        assert model.load_weights(iter(part)) == {name for name, _ in part}
    return model, arrivals.close()


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hash_is_the_learner_s_and_the_model_gets_it_all(
    parts: int, dtype: torch.dtype
) -> None:
    weights = first(dtype)
    model, found = arrive(weights, parts)
    assert found == weights.sha256
    assert pack(model.loaded, weights.version).sha256 == weights.sha256
    assert "load_weights" not in vars(model), "the model is as it was"


def test_one_bit_that_arrived_otherwise_is_seen() -> None:
    weights = first()
    weights.data[-1] ^= 1
    assert arrive(weights, 2)[1] != weights.sha256


def test_a_tensor_that_did_not_arrive_is_seen() -> None:
    weights = first()
    model = Receiving()
    arrivals = Arrivals(model)
    model.load_weights(list(unpack(weights).items())[:-1])
    assert arrivals.close() != weights.sha256


def handle() -> tuple[object, ...]:
    """As `torch.multiprocessing.reductions.reduce_tensor` makes them of GPU memory."""
    return (
        torch.Tensor, torch.Size([4, 3]), (3, 1), 0, torch.storage.TypedStorage, torch.uint8, 0,
        b"handle", 12, 64, False, b"counter", 1, b"event", True,
    )  # fmt: skip


def test_handles_have_the_parts_that_torch_rebuilds_from() -> None:
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    names = list(inspect.signature(rebuild_cuda_tensor).parameters)
    assert len(names) == len(handle())
    assert [names[i] for i in (0, 1, 2, 4, 5, 6)] == [
        "tensor_cls", "tensor_size", "tensor_stride", "storage_cls", "dtype", "storage_device",
    ]  # fmt: skip


@NEEDS_VLLM
def test_handles_pass_vllm_s_wire_without_pickle() -> None:
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    info = {
        "names": ["w"],
        "dtype_names": ["float32"],
        "shapes": [[3]],
        "ipc_handles": {"GPU-0": handle()},
        "tensor_sizes": [12],
    }
    with pytest.raises(TypeError, match="not serializable"):
        MsgpackEncoder().encode(info)
    arrived = from_plain(MsgpackDecoder().decode(MsgpackEncoder().encode(plain(info))))
    assert arrived == info
    assert IPCWeightTransferUpdateInfo(**arrived).ipc_handles == info["ipc_handles"]


def test_what_has_no_handles_stays_as_it_is() -> None:
    info = {"names": ["w"], "ipc_handles": None}
    assert plain(info) is info
    assert from_plain(info) is info


def test_handles_of_something_else_are_refused() -> None:
    other = (nn.Parameter, *handle()[1:])
    with pytest.raises(TypeError, match="vLLM lends plain tensors"):
        plain({"ipc_handles": {"GPU-0": other}})
