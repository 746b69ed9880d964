"""What stages leave behind: folders that appear whole, with the hash of every file.

Owns `RUN_DIR/products/`: its names, `product.json`, and the proof that a product is as it was left.
What the files are is their writers' business. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from manta.actors.file_on_disk import sha256_of, sync
from manta.orchestrator.model_names import Kind, meant, parse_stage
from manta.orchestrator.run_directory import RunDirectory, atomic_write
from manta.orchestrator.strict import nearest

RECORD = "product.json"
REPORT = "report.json"
_KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Product:
    """What `product.json` says. `files`: SHA-256 by name below the folder; `sha256` is over that
    map; `step` is the run's when the stage ended."""

    stage: str
    kind: Kind
    files: dict[str, str]
    sha256: str
    step: int


class Products:
    def __init__(self, root: Path) -> None:
        """`root` is the run directory."""
        self._directory = RunDirectory(root)
        self._root = self._directory.products

    def folder(self, name: str, kind: str) -> Path:
        """The folder of the product called `stage:NAME` (of a repeated stage, its newest) or
        `stage:NAME@K`, every file of which has been verified.

        Raises ValueError saying what is missing or damaged, and what to do.
        """
        stages = [product.stage for product in self.listed()]
        stage = meant(stages, parse_stage(name))
        if stage is None:
            hint = nearest(name.removeprefix("stage:"), stages) or "; no stage has left one yet"
            raise ValueError(f"there is no product '{name}' in {self._root}{hint}")
        product = self.of(stage)
        assert product is not None
        if product.kind != kind:
            raise ValueError(
                f"'{name}' is a product of kind {product.kind}, and one of kind {kind} is wanted: "
                "name a stage that leaves one"
            )
        folder = self._directory.product(stage)
        damaged = [
            file for file, sha256 in product.files.items() if _sha256(folder / file) != sha256
        ]
        if damaged:
            raise ValueError(
                f"product '{name}': {folder / damaged[0]} is missing or damaged. Put back a copy, "
                f"or delete {folder} and start the run again: weights are written anew from "
                "their checkpoint, other products need a run of another name"
            )
        return folder

    def listed(self) -> list[Product]:
        """All that are there, in the order that their stages ended in."""
        found = []
        for file in self._root.glob(f"*/{RECORD}"):
            if not file.parent.name.startswith("."):
                product = self.of(file.parent.name)
                assert product is not None
                found.append((product.step, file.stat().st_mtime_ns, product))
        return [product for _, _, product in sorted(found, key=lambda each: each[:2])]

    def of(self, stage: str) -> Product | None:
        """What `stage` left, its files unverified. Raises ValueError where that cannot be read."""
        file = self._directory.product(stage) / RECORD
        try:
            product = Product(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error}): delete {file.parent}") from error
        if product.kind not in _KINDS or product.sha256 != _over(product.files):
            raise ValueError(f"{file} is damaged: delete {file.parent}")
        return product

    def write(self, stage: str, kind: Kind, step: int, fill: Callable[[Path], None]) -> Product:
        """Has `fill` make the files of a product in an empty folder; they appear together."""
        partial = self._directory.product_in_progress(stage)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        return self.finish(stage, kind, step)

    def finish(self, stage: str, kind: Kind, step: int) -> Product:
        """Makes what lies in the folder that is in progress the product of `stage`."""
        partial = self._directory.product_in_progress(stage)
        if not partial.exists():
            self.reopen(stage)
        names = sorted(
            str(path.relative_to(partial))
            for path in partial.rglob("*")
            if path.is_file() and path.name != RECORD
        )
        files = {name: _synced_sha256(partial / name) for name in names}
        product = Product(stage, kind, files, _over(files), step)
        atomic_write(partial / RECORD, json.dumps(asdict(product), indent=1) + "\n")
        final = self._directory.product(stage)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(final.parent)
        return product

    def reopen(self, stage: str) -> None:
        """A stage goes on that had ended: what it left is in progress again."""
        final = self._directory.product(stage)
        partial = self._directory.product_in_progress(stage)
        if final.exists():
            (final / RECORD).unlink(missing_ok=True)
            if not partial.exists():
                final.rename(partial)

    def retract(self, step: int, unfinished: Sequence[str]) -> None:
        """A run goes on from `step`: what was left later, or by stages that are not finished there,
        is no product. Data that was written stays, in progress."""
        for file in self._root.glob(f"*/{RECORD}"):
            stage = file.parent.name
            if stage.startswith("."):
                continue
            try:
                product = self.of(stage)
            except ValueError:
                continue  # told when somebody asks for it
            if product is not None and (product.step > step or stage in unfinished):
                if product.kind == "data":
                    self.reopen(stage)
                else:
                    shutil.rmtree(file.parent)


def _over(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None


def _synced_sha256(path: Path) -> str:
    sync(path)
    return sha256_of(path)
