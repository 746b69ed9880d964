"""Every recipe loads and fits together."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator import run_file
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.reference_use import stages_with_reference

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "recipes"
GSM8K = Path("shared/data/gsm8k-train.jsonl")


def test_the_demo() -> None:
    loaded = run_file.load(RECIPES / "demo.yaml")
    assert cross_check(loaded) == []
    names = [stage.algorithm and stage.algorithm.name for stage in loaded.stages]
    assert names == ["sft", "grpo"]
    assert stages_with_reference(loaded)


def test_gsm8k() -> None:
    data = next((each / GSM8K for each in (ROOT, *ROOT.parents) if (each / GSM8K).is_file()), None)
    if data is None:
        pytest.skip(f"no {GSM8K} beside or above the repository")
    loaded = run_file.load(RECIPES / "gsm8k.yaml", [f"env.train={data}"])
    assert cross_check(loaded) == []
    assert loaded.stages[0].steps == 20


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_survives_its_resolved_copy(path: Path, tmp_path: Path) -> None:
    loaded = run_file.load(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(run_file.dump(loaded))
    assert run_file.load(copy) == loaded
