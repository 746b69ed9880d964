"""Weights by name: from checkpoints, products and folders, and averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.models.causal import build_model, model_state
from manta.actors.stored_folder import StoredFolder
from manta.actors.weight_tensors import unpack
from manta.envs.records import WeightVersion
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.export import write_tensors
from manta.orchestrator.model_names import parse_mixed
from manta.orchestrator.named_weights import NamedWeights, soup
from manta.orchestrator.products import Products
from manta.orchestrator.run_state import RunState
from tests.unit.orchestrator.tiny_run import TINY, load

TEXT = TINY.replace("  - name: rl\n", "  - name: rl\n    repeat: 2\n").replace(
    "rollout:",
    "  - {name: aside, kind: merge, models: [stage:rl, stage:warm], becomes_policy: false}\n"
    "  - {name: last, algorithm: sft, steps: 1}\nrollout:",
)
VERSION = WeightVersion(9, 1)


class Run:
    """Checkpoints of three stages' ends, of another step, and a product without a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.run_file = load(folder, text=TEXT)
        self.last = self.run_file.stages[-1]
        self.root = folder / "tiny"
        checkpoints = Checkpoints(StoredFolder.at(str(self.root / "checkpoints")), keep=9)
        for step, stage, ends in (
            (3, "warm", True),
            (5, "rl@1", False),
            (8, "rl@1", True),
            (13, "rl@2", True),
        ):
            backend = PlainBackend(build_model(self.run_file.model, 14, step), LearnerSettings())
            files = StoredFolder.at(checkpoints.begin(step)).fill(backend.save)
            checkpoints.commit(RunState(step, stage, step, ends, None, 0, 0, 0), files)
        products = Products(self.root)
        self.named = NamedWeights(self.run_file, checkpoints, products)
        self.checkpoints = checkpoints

        def fill(folder: Path) -> None:
            write_tensors(self.run_file, self.of(21), folder)

        products.write("aside", "weights", 13, fill)

    def of(self, seed: int) -> dict[str, Tensor]:
        return model_state(build_model(self.run_file.model, 14, seed))

    def read(self, name: str) -> dict[str, Tensor]:
        return self.named.tensors(parse_mixed(name), self.last)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_each_kind_of_name_gives_its_weights(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for name, seed in (
        ("stage:warm", 3),
        ("stage:rl", 13),
        ("stage:rl@1", 8),
        ("step:5", 5),
        ("step:3", 3),
        ("step:10", 8),
        ("initial", 0),
        ("stage:aside", 21),
        (str(run.root / "products" / "aside"), 21),
    ):
        assert equal(run.read(name), run.of(seed)), name
    assert str(run.named.policy(13)) == "step:13"


def test_a_label_names_the_content(tmp_path: Path) -> None:
    run = Run(tmp_path)
    named = run.named.named(parse_mixed("stage:rl"), run.last, VERSION)
    assert named.label == f"stage:rl@2#{named.weights.sha256[:8]}"
    assert named.weights.version == VERSION
    assert equal(unpack(named.weights), run.of(13))
    mixed = run.named.named(parse_mixed("soup(stage:rl, initial)"), run.last, VERSION)
    assert mixed.label.startswith("soup(stage:rl@2, initial)#")


def test_a_soup_is_the_average_by_hand(tmp_path: Path) -> None:
    run = Run(tmp_path)
    found = run.read("soup(stage:warm, step:5, initial)")
    for name, tensor in found.items():
        parts = torch.stack([run.of(seed)[name] for seed in (3, 5, 0)]).double()
        torch.testing.assert_close(tensor.double(), parts.mean(0), atol=1e-7, rtol=0)
    one, other = {"w": torch.tensor([4.0])}, {"w": torch.tensor([8.0])}
    assert soup([one, other], ["a", "b"], [3, 1])["w"].tolist() == [5.0]
    assert one["w"].tolist() == [4.0], "what it is made of stays"
    coarse = [{"w": torch.tensor([1.0, 256.0], dtype=torch.bfloat16)} for _ in range(3)]
    assert soup(coarse, ["a", "b", "c"])["w"].dtype == torch.float32


def test_models_that_do_not_go_together_are_named() -> None:
    one, other = {"w": torch.zeros(2)}, {"w": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"'b' cannot be averaged with 'a': w has shape \(3,\)"):
        soup([one, other], ["a", "b"])


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="'step:14': the run has no checkpoint of that step yet"):
        run.read("step:14")
    empty = Checkpoints(StoredFolder.at(str(tmp_path / "empty")), keep=1)
    named = NamedWeights(run.run_file, empty, Products(tmp_path / "empty"))
    with pytest.raises(ValueError, match="stage 'warm' has not ended yet"):
        named.tensors(parse_mixed("stage:warm"), run.last)
    assert str(named.policy(0)) == "initial"
    (run.root / "checkpoints/step=000013/learner/model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model\.safetensors has 4 bytes, \d+ were written"):
        run.read("stage:rl")


def test_a_bfloat16_run_takes_its_own_dtype_from_a_folder(tmp_path: Path) -> None:
    run = Run(tmp_path)
    model = replace(run.run_file.model, dtype="bfloat16")
    named = NamedWeights(replace(run.run_file, model=model), run.checkpoints, Products(run.root))
    found = named.tensors(parse_mixed(str(run.root / "products" / "aside")), run.last)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
