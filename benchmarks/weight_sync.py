"""Bytes and seconds that a publish takes, by transport, against full copies.

Bytes: real AdamW steps of three models at four learning rates, delta against full copy. Seconds: a
learner, the weight store and engines as real Ray actors; from the weights as canonical bytes to the
last engine's receipt over the full bytes that it ends up with, so encoding, moving, applying and
hashing all count. Engines hold and hash bytes and run no model. Full publishes (nobody holds
anything) and updates (a delta, where one is worth making) take turns; of two updates in a row the
second counts, since the first after a full copy also makes engines copy what Ray lent them. Ratios
of bytes are those of every delta, also of those that are not worth making: float32 weights change
in nearly all of their bytes. Everything runs on one machine, where a full copy goes through shared
memory and costs next to nothing: the seconds are those of the work, the bytes those of a network.

    python -m benchmarks.weight_sync [--repeats N] [--sizes 3M,30M,120M]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import ray
import torch
from ray.actor import ActorHandle

from benchmarks.moved_weights import SIZES, Dtype, Step, steps
from benchmarks.report import Figure, write
from manta.actors.cores import available_cores
from manta.actors.transports.delta import apply, difference
from manta.actors.transports.inbox import Inbox
from manta.actors.transports.outbox import Outbox
from manta.actors.transports.protocol import Delivery, Parcel
from manta.actors.transports.registry import TRANSPORTS, build_transport
from manta.actors.transports.settings import TransportSettings
from manta.actors.weight_store import WeightStore
from manta.actors.weights import Receipt, Weights, content_hash
from manta.envs.records import WeightVersion
from manta.orchestrator.pools import start

CLAIM = "Weights of a publish: lossless delta against full copy, bytes and seconds"
RATES = (1e-6, 1e-5, 1e-4, 1e-3)
BAR, AIM = 30.0, 80.0
ENGINES = (1, 2, 4)
FEW, ENGINES_SIZE = 2, "30M"


class Sender:
    """The learner's rank 0: two versions that it hands over in turn."""

    def __init__(self, store: ActorHandle[WeightStore], one: Weights, other: Weights) -> None:
        self._store, self._weights = store, (one, other)
        self._outbox = Outbox()

    def hand_over(self, which: int, version: WeightVersion, in_full: bool) -> str:
        """The hash of the weights; `in_full` forgets what was handed over before."""
        self._outbox = Outbox() if in_full else self._outbox
        weights = replace(self._weights[which], version=version)
        if not ray.get(self._store.put.remote(self._outbox.content(weights))):
            raise RuntimeError("the weight store does not hold what it was given last")
        return weights.sha256


class Engine:
    """Holds canonical bytes and proves them."""

    def __init__(self, settings: TransportSettings) -> None:
        self._inbox = Inbox(build_transport(settings))

    async def take(self, parcel: Parcel) -> Delivery:
        return await self._inbox.deliver(parcel, self._load)

    async def _load(self, weights: Weights) -> Receipt:
        return Receipt(weights.version, content_hash(weights.specs, weights.data))


class Publishes:
    """One sender, one store, some engines."""

    def __init__(self, settings: TransportSettings, step: Step, engines: int) -> None:
        self._store = start(WeightStore, 0, settings)
        self._sender = start(Sender, 0, self._store, step.before, step.after)
        self._engines = [start(Engine, 0, settings) for _ in range(engines)]
        self._number, self._held = 0, ""

    def publish(self, in_full: bool) -> float:
        """Seconds of one publish. Raises RuntimeError where a receipt is wrong."""
        self._number += 1
        version = WeightVersion(self._number, 0)
        begin = time.perf_counter()
        handed: ray.ObjectRef[str] = self._sender.hand_over.remote(
            self._number % 2, version, in_full
        )
        sha256: str = ray.get(handed)
        parcel = self._store.parcel.remote(version, None if in_full else self._held)
        taken: list[Delivery] = ray.get([engine.take.remote(parcel) for engine in self._engines])
        seconds = time.perf_counter() - begin
        if any(delivery.receipt != Receipt(version, sha256) for delivery in taken):
            raise RuntimeError(f"an engine did not get weights {version}: {taken}")
        self._held = sha256
        return seconds

    def close(self) -> None:
        for engine in self._engines:
            ray.kill(engine)
        ray.kill(self._sender)
        ray.kill(self._store)


@contextmanager
def publishes(transport: str, step: Step, engines: int) -> Iterator[Publishes]:
    with tempfile.TemporaryDirectory(prefix="weight-sync-") as folder:
        crew = Publishes(
            TransportSettings(transport, folder if transport == "disk" else None), step, engines
        )
        try:
            yield crew
        finally:
            crew.close()


def seconds(name: str, step: Step, engines: int, repeats: int) -> list[Figure]:
    """Figures of every transport; the first round of publishes is not counted."""
    figures = []
    is_sent = difference(step.before, step.after) is not None
    for transport in TRANSPORTS:
        with publishes(transport, step, engines) as crew:
            rounds = [
                [crew.publish(in_full) for in_full in (True, False, False)]
                for _ in range(repeats + 1)
            ][1:]
        full, delta = [times[0] for times in rounds], [times[2] for times in rounds]
        what = f"{name}, {transport}, {engines} engine{'s' if engines > 1 else ''}"
        figures += [
            Figure(f"{what}: full", median(full), "s", None, None, "lower", full),
            Figure(
                f"{what}: {'delta' if is_sent else 'update, in full'}",
                median(delta),
                "s",
                None,
                None,
                "lower",
                delta,
            ),
        ]
    return figures


def smaller(name: str, step: Step, is_claimed: bool) -> tuple[Figure, float]:
    """How many times a delta is smaller, and its share of a full copy as it would be sent."""
    delta = difference(step.before, step.after, worth=1.0)
    size = len(step.after.data)
    sent = size if delta is None else len(delta.encoded)
    bar, aim = (BAR, AIM) if is_claimed else (None, None)
    figure = Figure(
        f"{name}, learning rate {step.rate:g}: full / delta bytes",
        size / sent,
        "x",
        bar,
        aim,
        "higher",
        [[float(size), float(sent)]],
    )
    return figure, sent / size


def speeds(name: str, step: Step, repeats: int) -> list[Figure]:
    """GB/s of weights, in one process with all of its cores."""
    delta = difference(step.before, step.after, worth=1.0)
    assert delta is not None
    data, specs = step.before.data.copy(), step.before.specs

    def restore_and_apply() -> float:
        data[:] = step.before.data
        return timed(lambda: apply(delta, specs, data))

    found = {
        "encode": [timed(lambda: difference(step.before, step.after, 1.0)) for _ in range(repeats)],
        "apply": [restore_and_apply() for _ in range(repeats)],
        "hash": [timed(lambda: content_hash(specs, data)) for _ in range(repeats)],
    }
    size = len(data) / 1e9
    return [
        Figure(
            f"{name}, learning rate {step.rate:g}: {what}",
            size / median(times),
            "GB/s",
            None,
            None,
            "higher",
            [size / one for one in times],
        )
        for what, times in found.items()
    ]


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(size: str, dtype: Dtype, repeats: int) -> tuple[list[Figure], float]:
    """All figures of one model, and the largest share of a full copy that was sent."""
    name = f"{size} {dtype}"
    figures: list[Figure] = []
    timings: list[Figure] = []
    largest = 0.0
    for step in steps(size, dtype, RATES):
        is_claimed = dtype == "bfloat16" and step.rate == RATES[0]
        figure, share = smaller(name, step, is_claimed)
        figures.append(figure)
        largest = max(largest, share)
        if step.rate == RATES[0]:
            timings += speeds(name, step, repeats)
            many = ENGINES if (size, dtype) == (ENGINES_SIZE, "bfloat16") else (FEW,)
            for engines in many:
                timings += seconds(name, step, engines, repeats)
    print(*(f"{figure.name}: {figure.value:.4g} {figure.unit}" for figure in figures), sep="\n")
    return figures + timings, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=5, help="publishes of each kind")
    parser.add_argument("--sizes", default=",".join(SIZES), help="models to measure")
    arguments = parser.parse_args()
    cores = available_cores()
    torch.set_num_threads(cores)
    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    try:
        found = [
            measure(size, dtype, arguments.repeats)
            for size in arguments.sizes.split(",")
            for dtype in dtypes
        ]
    finally:
        ray.shutdown()
    largest = max(share for _, share in found)
    figures = [figure for figures, _ in found for figure in figures]
    figures.append(
        Figure("largest share of a full copy sent", largest, "", 1.0, None, "lower", [largest])
    )
    write("weight_sync", CLAIM, figures, ["ray", "torch", "numpy", "pyarrow"], cores)


if __name__ == "__main__":
    main()
