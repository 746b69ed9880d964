"""What stages leave when they end, also where that is written in a later life."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.models.causal import build_model, model_state
from manta.actors.stored_folder import StoredFolder
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.evaluate import Evaluation
from manta.orchestrator.products import Products
from manta.orchestrator.progress import Progress
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.run_state import RunState
from manta.orchestrator.stage_products import (
    leave,
    leave_report,
    leave_weights,
    left_by,
    read_report,
)
from manta.orchestrator.storage import Storage
from manta.orchestrator.wait import Waits
from tests.unit.orchestrator.tiny_run import TINY, load

TEXT = TINY.replace(
    "rollout:",
    "  - {name: sample, kind: generate, algorithm: sft, steps: 2, evaluate: null}\n"
    "  - {name: aside, kind: merge, models: [initial], becomes_policy: false}\n"
    "  - {name: exam, kind: evaluate}\nrollout:",
)


class Run:
    """What a stage that leaves something sees of a run: `warm` and `sample` have ended."""

    def __init__(self, folder: Path, place: StoredFolder) -> None:
        self.run_file = load(folder, text=TEXT)
        self.stages = {stage.name: stage for stage in self.run_file.stages}
        self.directory = RunDirectory(folder / "tiny")
        self.products, self.recorder = Products(self.directory.root), self
        self.storage = Storage(Waits(), 60.0)
        self.progress = Progress("sample", 5, 2)
        self.checkpoints = Checkpoints(place, keep=1)
        self.model = build_model(self.run_file.model, 14, 3)
        learner = StoredFolder.at(self.checkpoints.begin(3))
        files = learner.fill(PlainBackend(self.model, LearnerSettings()).save)
        self.checkpoints.commit(RunState(3, "warm", 3, True, None, 0, 0, 0), files)
        self.checkpoints.begin(5)
        self.checkpoints.commit(RunState(5, "sample", 2, True, None, 0, 0, 0), ())
        self.events: list[str] = []

    def event(self, name: str, fields: object, text: str) -> None:
        self.events.append(text)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, StoredFolder.at(f"file://{tmp_path}/kept"))


async def test_weights_are_written_from_the_checkpoint_and_anew_where_they_are_gone(
    run: Run,
) -> None:
    for _ in range(2):
        await leave(run, run.stages["warm"])  # type: ignore[arg-type]
    assert run.events == ["stage:warm left weights"], "what is there is not written again"
    folder = run.products.folder("stage:warm", "weights")
    found = model_state(AutoModelForCausalLM.from_pretrained(folder))
    assert all(torch.equal(found[name], t) for name, t in model_state(run.model).items())
    product = run.products.of("warm")
    assert product is not None and product.step == 3
    shutil.rmtree(folder)
    await leave(run, run.stages["warm"])  # type: ignore[arg-type]
    again = run.products.of("warm")
    assert again is not None and again.sha256 == product.sha256


async def test_data_is_what_was_written_in_progress(run: Run) -> None:
    written = run.directory.product_in_progress("sample") / "step=5" / "written.parquet"
    written.parent.mkdir(parents=True)
    written.write_text("groups")
    await leave(run, run.stages["sample"])  # type: ignore[arg-type]
    folder = run.products.folder("stage:sample", "data")
    assert (folder / "step=5" / "written.parquet").read_text() == "groups"
    assert not written.exists()


async def test_data_of_an_older_version_becomes_a_product_where_it_lies(run: Run) -> None:
    written = run.directory.product("sample") / "step=5" / "written.parquet"
    written.parent.mkdir(parents=True)
    written.write_text("groups")
    await leave(run, run.stages["sample"])  # type: ignore[arg-type]
    assert (run.products.folder("stage:sample", "data") / "step=5/written.parquet").exists()


async def test_what_no_checkpoint_holds_is_left_by_its_stage(run: Run) -> None:
    evaluation = Evaluation(0.5, 0.25, 3.0, 10, None)
    for name in ("aside", "exam"):
        await leave(run, run.stages[name])  # type: ignore[arg-type]
    assert left_by(run.products) == {}
    await leave_weights(run, run.stages["aside"], model_state(run.model))  # type: ignore[arg-type]
    await leave_report(run, run.stages["exam"], evaluation)  # type: ignore[arg-type]
    assert read_report(run.products, "exam") == evaluation
    assert left_by(run.products) == {"stage:aside": "weights", "stage:exam": "report"}
