"""verl's side of the driver's comparison: its single controller holds the batch that Ray carries.

verl's own classes (`DataProto`, `RayWorkerGroup`, `Worker`, the dispatch and collect functions that
its workers are registered with), on workers that only fill and read tensors. A step is the least
that verl's trainer does with a batch: collect it from those who made it (concatenate), dispatch it
to those who learn from it (split). The trainer also sends it out for log-probs of the old and the
reference policy; that is not counted. Runs as a command that joins the Ray of RAY_ADDRESS and
prints a JSON object.

    python -m benchmarks.verl_side STEPS GROUPS:BYTES...
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import ray
import torch
from verl import DataProto
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

from benchmarks.sized_batches import BYTES_PER_TOKEN, SAMPLES

WARM_UP = 2
WORKERS = 4
MESH = "actor"


class Filler(Worker):
    """Makes and reads rows. As many bytes a token as Manta's rows: id, loss mask, log-prob."""

    def __init__(self) -> None:
        super().__init__()
        self._register_dispatch_collect_info(MESH, dp_rank=self.rank, is_collect=True)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(MESH))
    def generate(self, prompts: DataProto) -> DataProto:
        shape = (len(prompts), prompts.meta_info["tokens"])
        return DataProto.from_dict(
            {
                "input_ids": torch.ones(shape, dtype=torch.int32),
                "response_mask": torch.ones(shape, dtype=torch.bool),
                "rollout_log_probs": torch.ones(shape, dtype=torch.float32),
            }
        )

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(MESH))
    def update(self, batch: DataProto) -> DataProto:
        """The bytes of each row, all of which it has read."""
        columns = [column.sum(1, dtype=torch.float64) for column in batch.batch.values()]
        read = sum(columns) / len(columns) * BYTES_PER_TOKEN
        return DataProto.from_dict({"read": read})


def step(group: RayWorkerGroup, rows: int, tokens: int) -> float:
    """Processor milliseconds of the controller's process.

    Raises RuntimeError where the workers did not read the batch.
    """
    began = time.process_time()
    prompts = DataProto.from_dict({"index": torch.arange(rows)}, meta_info={"tokens": tokens})
    batch = group.generate(prompts)
    read = group.update(batch).batch["read"].sum().item()
    if read != rows * tokens * BYTES_PER_TOKEN:
        raise RuntimeError(f"the workers read {read:,.0f} bytes of {rows} x {tokens} tokens")
    return 1e3 * (time.process_time() - began)


def main(arguments: Sequence[str]) -> None:
    steps, *told = arguments
    ray.init(log_to_driver=False)
    try:
        pool = RayResourcePool([WORKERS], use_gpu=False, max_colocate_count=1)
        workers = RayClassWithInitArgs(ray.remote(Filler))
        group = RayWorkerGroup(pool, workers, device_name="cpu")
        found = []
        for batch in told:
            groups, _, size = batch.partition(":")
            rows = int(groups) * SAMPLES
            tokens = int(size) // (rows * BYTES_PER_TOKEN)
            found.append([step(group, rows, tokens) for _ in range(WARM_UP + int(steps))][WARM_UP:])
        print(json.dumps(found))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
