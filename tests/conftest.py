"""Settings that must stand before torch loads; a session's one vLLM, and its one finished run."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from filelock import FileLock
from hypothesis import settings

from tests.e2e import runs
from tests.vllm_here import CONTEXT, EXPORTED, MODEL, ROWS, VOCAB, devices

if TYPE_CHECKING:
    from torch import nn
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

    from manta.actors.engines.vllm_engine import VllmEngine
    from manta.envs.records import Float32

# Tests share their cores: threads that wait for each other must not spin (see
# manta.orchestrator.placement).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# A shared machine may stop an example for longer than hypothesis would wait.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    from tests.by_file import ByFile

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU: torch sees none here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The directory of a deterministic run from start to end without interruption, for reading.
    Where tests run in several processes, all read the one that the first to need it makes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "tiny" / "summary.json").exists():
            result = runs.manta("train", runs.TINY, folder, "run.deterministic=true")
            assert result.returncode == 0, result.stdout + result.stderr
    return folder / "tiny"


@dataclass(frozen=True)
class Started:
    """The one vLLM of the session: `engine` makes engines over it (do they keep keys and values?).
    It was started on what `manta export` makes of a checkpoint of `model`, whose log-probs of
    `ROWS` were `found` before anything else was loaded."""

    engine: Callable[[bool], VllmEngine]
    model: nn.Module
    found: list[Float32]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def started_vllm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Started]:
    from manta.actors.engines.occupancy import Occupancy
    from manta.actors.engines.settings import EngineSettings
    from manta.actors.engines.vllm_engine import VllmEngine
    from manta.actors.engines.vllm_folder import served_model
    from manta.actors.engines.vllm_start import start
    from manta.envs.records import WeightVersion
    from manta.orchestrator.cli import main
    from tests.trained_run import TrainedRun

    folder: Path = tmp_path_factory.mktemp("model")
    run = TrainedRun(folder, (4,), *EXPORTED, noise=0.15)
    assert main(["export", str(run.root), str(folder / "exported")]) == 0
    spec = replace(MODEL, build=None, path=str(folder / "exported"))
    served = served_model(spec, VOCAB, 0, folder)
    settings = EngineSettings(
        engine="vllm",
        placement="colocated",  # so that it can sleep
        threads=1,
        devices=devices(),
        max_rows=3,
    )
    held = [start(settings, spec, served)]

    def engine(keeps_kv: bool) -> VllmEngine:
        own = replace(settings, kv_on_publish="keep" if keeps_kv else "recompute")
        version = WeightVersion(0, 0)
        return VllmEngine(held[0], served, own, CONTEXT, version, Occupancy(own.max_rows))

    yield Started(engine, run.models[4], await engine(False).logprobs(ROWS))
    await engine(False).end_processes()
    held.clear()
    gc.collect()  # while the interpreter is whole: vLLM's destructor needs it


@pytest_asyncio.fixture(loop_scope="session")
async def vllm(started_vllm: Started) -> VllmEngine:
    """A vLLM engine with the initial weights of `MODEL`, called version 0.0."""
    engine = started_vllm.engine(False)
    await load_initial(engine)
    return engine


@pytest_asyncio.fixture(loop_scope="session")
async def keeping_vllm(started_vllm: Started) -> VllmEngine:
    """As `vllm`, with `kv_on_publish: keep`."""
    engine = started_vllm.engine(True)
    await load_initial(engine)
    return engine


async def load_initial(engine: VllmEngine) -> None:
    from manta.actors.models.causal import build_model, model_state
    from manta.actors.weight_tensors import pack
    from manta.envs.records import WeightVersion

    await engine.pause()
    await engine.load(pack(model_state(build_model(MODEL, VOCAB, 0)), WeightVersion(0, 0)))
    await engine.resume()
