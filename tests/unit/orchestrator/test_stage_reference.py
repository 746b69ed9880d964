"""When a stage's reference is read, follows the policy, is saved and goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from manta.actors.models.causal import model_state
from manta.actors.scorers.combining import CombiningScorer
from manta.actors.scorers.following import REFERENCE_FILE
from manta.actors.scorers.settings import Combination
from manta.actors.step_work import StepReport
from manta.actors.stored_folder import StoredFolder, WrittenFile
from manta.actors.weight_tensors import pack
from manta.actors.weights import Receipt, Weights
from manta.envs.records import WeightVersion
from manta.envs.step_records import Update
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.named_weights import Named
from manta.orchestrator.progress import Progress
from manta.orchestrator.reference_config import RefreshConfig, StageReferenceConfig
from manta.orchestrator.run_state import RunState
from manta.orchestrator.stage_reference import StageReference, refresh_of
from manta.orchestrator.storage import Storage
from manta.orchestrator.wait import Waits
from tests.unit.orchestrator.tiny_run import load
from tiny import tiny_model


def policy(step: int) -> Weights:
    return pack(model_state(tiny_model(seed=step)), WeightVersion(step, 0))


class OneWorker:
    """The pool, in this process; `damage` parcels come damaged."""

    def __init__(self, damage: int = 0) -> None:
        self.scorer = CombiningScorer(lambda: tiny_model(seed=0), 1000)
        self.damage = damage
        self.versions: list[str] = []

    async def version(self) -> str:
        return self.scorer.version

    async def load(self, weights: Weights, name: str) -> list[Receipt]:
        return [self.scorer.load(weights, name)]

    async def combine(
        self, combination: Combination, weights: Sequence[Weights]
    ) -> list[tuple[Receipt, ...]]:
        receipts = self.scorer.combine(combination, weights)
        if self.damage:
            receipts = (receipts[0], Receipt(receipts[1].version, "other"))
        return [receipts]

    async def follow(
        self, parcel: Weights, sha256: str, name: str, decay: float | None
    ) -> list[Receipt]:
        if self.damage > 0:
            self.damage -= 1
            return [Receipt(parcel.version, "")]
        self.scorer.follow(parcel, name, decay)
        self.versions.append(self.scorer.version.partition("#")[0])
        return [Receipt(parcel.version, sha256)]

    async def restore(self, folder: str) -> str:
        return self.scorer.restore(Path(folder))

    async def save(self, folder: str) -> tuple[WrittenFile, ...]:
        return StoredFolder.at(folder).fill(self.scorer.snapshot())


class Source:
    def named(self, name: object, reader: object, version: WeightVersion) -> Named:
        return Named(str(name), policy(3))


class Run:
    """What a stage's reference sees of a run."""

    deadline_seconds = 5.0
    incarnation = 0

    def __init__(self, folder: Path, reference: str, damage: int = 0) -> None:
        self.run_file = load(
            folder, "stages.rl.algorithm.kl.coef=0.1", f"stages.rl.reference={reference}"
        )
        self.stage = self.run_file.stages[1]
        self.references = OneWorker(damage)
        self.crew = SimpleNamespace(references=self.references, client=self)
        self.progress = Progress("rl", 3, 0)
        self.checkpoints = Checkpoints(StoredFolder.at(str(folder / "checkpoints")), keep=9)
        self.waits, self.named, self.recorder = Waits(), Source(), self
        self.storage = Storage(self.waits, 20.0)
        self.events: list[str] = []

    def parcel(self, version: WeightVersion, base: None, afresh: bool) -> Weights:
        return policy(version.step)

    def event(self, name: str, fields: dict[str, str]) -> None:
        self.events.append(fields["version"].partition("#")[0])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    async def step(self, reference: StageReference, stage_step: int) -> None:
        weights = policy(3 + stage_step)
        update = Update(weights.version, {}, weights.sha256)
        await reference.published(StepReport(update, (), {}), stage_step)


def opened(folder: Path, reference: str, damage: int = 0) -> tuple[Run, StageReference]:
    run = Run(folder, reference, damage)
    return run, StageReference(run, run.stage)  # type: ignore[arg-type]


async def test_by_default_it_is_the_policy_at_the_start_and_stands_still(tmp_path: Path) -> None:
    run, reference = opened(tmp_path, "{}")
    await reference.open()
    assert run.events == ["stage:warm"]
    await run.step(reference, 1)
    assert run.references.versions == []
    assert reference.saving(str(tmp_path)) is None, "it is read again by its name"


COMBINED = "{combine: {'stage:warm': 2.0, initial: -1.0}}"


async def test_a_combination_is_loaded_and_stands_still(tmp_path: Path) -> None:
    run, reference = opened(tmp_path, COMBINED)
    await reference.open()
    assert run.events == ["2 x stage:warm - 1 x initial"]
    await run.step(reference, 1)
    assert run.references.versions == []
    assert reference.saving(str(tmp_path)) is None


async def test_a_combination_of_other_weights_than_those_named_ends_the_run(tmp_path: Path) -> None:
    _, reference = opened(tmp_path, COMBINED, damage=1)
    with pytest.raises(RuntimeError, match="received weights other, not initial#"):
        await reference.open()


async def test_it_follows_every_so_many_steps(tmp_path: Path) -> None:
    run, reference = opened(tmp_path, "{refresh: {every_steps: 2}}")
    await reference.open()
    for stage_step in (1, 2, 3, 4):
        await run.step(reference, stage_step)
    assert run.references.versions == ["step:5", "step:7"]
    named = model_state(run.references.scorer._single.model)
    assert all(torch.equal(named[n], t) for n, t in model_state(tiny_model(seed=7)).items())


async def test_a_damaged_parcel_is_sent_again_and_a_second_one_ends_the_run(
    tmp_path: Path,
) -> None:
    run, reference = opened(tmp_path, "{model: ema(0.9)}", damage=1)
    await reference.open()
    await run.step(reference, 1)
    assert run.references.versions == ["ema(0.9)@4"]
    run, reference = opened(tmp_path, "{model: ema(0.9)}", damage=2)
    with pytest.raises(RuntimeError, match="received other weights than those of step 4"):
        await run.step(reference, 1)


async def test_a_run_that_goes_on_has_the_reference_of_one_that_did_not_stop(
    tmp_path: Path,
) -> None:
    alone, reference = opened(tmp_path, "{model: ema(0.9)}")
    await reference.open()
    await alone.step(reference, 1)
    learner = StoredFolder.at(alone.checkpoints.begin(4))
    saving = reference.saving(learner.location)
    assert saving is not None
    files = await saving
    assert [file.name for file in files] == [REFERENCE_FILE]
    alone.checkpoints.commit(RunState(4, "rl", 1, False, None, 0, 0, 0), files)
    await alone.step(reference, 2)

    resumed, again = opened(tmp_path, "{model: ema(0.9)}")
    resumed.progress = Progress("rl", 4, 1)
    await again.open()
    assert resumed.events == ["ema(0.9)@4"]
    await resumed.step(again, 2)
    assert resumed.references.scorer.version == alone.references.scorer.version
    found, wanted = (model_state(each.references.scorer._single.model) for each in (resumed, alone))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_moving_average_is_short_for_a_refresh() -> None:
    refresh = refresh_of(StageReferenceConfig("ema(0.95)"))
    assert refresh == RefreshConfig(1, "ema", 0.95)
    own = RefreshConfig(4)
    assert refresh_of(StageReferenceConfig("stage:sft", own)) == own
