"""Models that a run file names by path: whether there is such a folder, what its config.json says.

Names on a hub are looked at when the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from manta.envs.records import Json


def is_missing(path: str) -> bool:
    """Is it neither a folder nor a name on a hub? Such a name has at most one slash; what starts
    like a path or has more is a path."""
    is_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    return is_path and not Path(path).is_dir()


def folder_config(path: str) -> Mapping[str, Json] | None:
    """What the config.json in a folder says; None where `path` is no folder.

    Raises ValueError where it cannot be read.
    """
    if not Path(path).is_dir():
        return None
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"cannot read {file}: it holds no JSON object")
    return config


def length_problems(config: Mapping[str, Json], path: str, context: int) -> Iterator[str]:
    """Of a model that reads rows of `context` tokens."""
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions < context:
        yield (
            f"the model in '{path}' was made for at most {positions:,} tokens, model.context is "
            f"{context:,}"
        )


def folder_problems(path: str, context: int) -> Iterator[str]:
    """Of the model that one beside the policy starts from."""
    if is_missing(path):
        yield f"there is no folder '{path}'"
    try:
        config = folder_config(path)
    except ValueError as error:
        yield str(error)
        return
    if config is not None:
        yield from length_problems(config, path, context)
