"""Every key of the run file stands in the documents."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

from manta.orchestrator.config import RunFile

DOCS = Path(__file__).parents[3] / "docs"


def _keys(of: object, path: str = "") -> Iterator[str]:
    """Of a type: those of the dataclasses in it, with the keys that lead there."""
    if dataclasses.is_dataclass(of) and isinstance(of, type):
        for name, kind in get_type_hints(of).items():
            yield f"{path}{name}"
            yield from _keys(kind, f"{path}{name}.")
    for part in get_args(of):
        yield from _keys(part, path)


def test_every_key_of_the_run_file_is_told() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    quoted = " ".join(re.findall(r"`([^`\n]+)`", text))
    told = {*re.findall(r"\w+", quoted), *re.findall(r"(\w+):", text)}
    keys = set(_keys(RunFile))
    assert {"learner.decay", "rollout.simulated.length_sigma", "stages.algorithm.kl.coef"} <= keys
    assert {key for key in keys if key.rpartition(".")[2] not in told} == set()
