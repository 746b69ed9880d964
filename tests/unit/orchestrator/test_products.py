"""What stages leave: whole or not there, verified, and retracted with the history it is of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manta.orchestrator.products import Products


def fill(text: str) -> object:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text(text)
        (folder / "config.json").write_text("{}")

    return write


def written(root: Path, stage: str, step: int, kind: str = "weights") -> Path:
    products = Products(root)
    products.write(stage, kind, step, fill(stage))  # type: ignore[arg-type]
    return root / "products" / stage


def data(root: Path, stage: str, *steps: int) -> Products:
    for step in steps:
        folder = root / "products" / f".{stage}" / f"step={step}"
        folder.mkdir(parents=True)
        (folder / "written.parquet").write_text(f"groups of {step}")
    products = Products(root)
    products.finish(stage, "data", steps[-1])
    return products


def test_a_product_is_found_by_name_with_every_file_named(tmp_path: Path) -> None:
    folder = written(tmp_path, "sft", 4)
    assert Products(tmp_path).folder("stage:sft", "weights") == folder
    record = json.loads((folder / "product.json").read_text())
    assert (record["stage"], record["kind"], record["step"]) == ("sft", "weights", 4)
    assert sorted(record["files"]) == ["config.json", "model.safetensors"]
    assert [path.name for path in (tmp_path / "products").iterdir()] == ["sft"]


def test_of_a_repeated_stage_the_newest_is_found(tmp_path: Path) -> None:
    for repeat in (1, 2):
        written(tmp_path, f"rl@{repeat}", repeat)
    products = Products(tmp_path)
    assert products.folder("stage:rl", "weights").name == "rl@2"
    assert products.folder("stage:rl@1", "weights").name == "rl@1"
    with pytest.raises(ValueError, match=r"no product 'stage:rl@3' .* did you mean 'rl@"):
        products.folder("stage:rl@3", "weights")


def test_what_is_missing_or_of_another_kind_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage has left one yet"):
        Products(tmp_path).folder("stage:sft", "weights")
    written(tmp_path, "sft", 4)
    with pytest.raises(ValueError, match="kind weights, and one of kind data is wanted"):
        Products(tmp_path).folder("stage:sft", "data")
    with pytest.raises(ValueError, match="did you mean 'sft'"):
        Products(tmp_path).folder("stage:sftt", "weights")


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    file = written(tmp_path, "sft", 4) / "model.safetensors"
    if damage == "torn":
        file.write_text("sf")
    else:
        file.unlink()
    with pytest.raises(ValueError, match=r"sft/model\.safetensors is missing or damaged\. Put"):
        Products(tmp_path).folder("stage:sft", "weights")


def test_a_record_that_does_not_add_up_is_damaged(tmp_path: Path) -> None:
    record = written(tmp_path, "sft", 4) / "product.json"
    record.write_text(record.read_text().replace("config.json", "other.json"))
    with pytest.raises(ValueError, match="is damaged: delete"):
        Products(tmp_path).folder("stage:sft", "weights")
    record.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        Products(tmp_path).of("sft")


def test_nothing_is_seen_of_a_product_that_was_not_finished(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    products = Products(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        products.write("sft", "weights", 4, broken)
    assert products.of("sft") is None and not (tmp_path / "products" / "sft").exists()
    written(tmp_path, "sft", 4)
    assert products.folder("stage:sft", "weights").is_dir()


def test_a_run_that_goes_back_retracts_what_came_later(tmp_path: Path) -> None:
    written(tmp_path, "sft", 4)
    written(tmp_path, "exam", 4, "report")
    products = data(tmp_path, "sample", 5, 6)
    products.retract(5, [])
    assert [each.stage for each in products.listed()] == ["sft", "exam"]
    kept = tmp_path / "products" / ".sample"
    assert {path.name for path in kept.iterdir()} == {"step=5", "step=6"}, "the steps are cut apart"
    products.retract(5, ["exam"])
    assert [each.stage for each in products.listed()] == ["sft"]
    assert products.finish("sample", "data", 6).files.keys() == {
        "step=5/written.parquet",
        "step=6/written.parquet",
    }
