"""Can the model of a run file be built, or read?"""

from __future__ import annotations

from collections.abc import Iterator

from manta.orchestrator.config import RunFile
from manta.orchestrator.model_folder import folder_config, is_missing


def model_problems(run_file: RunFile) -> Iterator[str]:
    """Problems, as key and what is wrong."""
    model = run_file.model
    if (model.path is None) == (model.build is None):
        found = "neither" if model.path is None else "both"
        yield f"model.path: exactly one of model.path and model.build is needed, found {found}"
    elif model.path is not None and is_missing(model.path):
        yield f"model.path: there is no folder '{model.path}'"
    build = model.build
    if build is not None:
        kv_heads = build.heads if build.kv_heads is None else build.kv_heads
        sizes = {
            "layers": build.layers,
            "width": build.width,
            "heads": build.heads,
            "kv_heads": kv_heads,
            "mlp_width": build.mlp_width,
        }
        small = [name for name, size in sizes.items() if size < 1]
        yield from (f"model.build.{name}: is {sizes[name]}, must be at least 1" for name in small)
        if small:
            return
        if build.width % build.heads:
            yield f"model.build.width: {build.width} is not divisible by {build.heads} heads"
        elif build.width // build.heads % 2:
            yield (
                f"model.build.width: {build.width} / {build.heads} heads gives an odd head size, "
                "rotary positions need an even one"
            )
        if build.heads % kv_heads:
            yield f"model.build.kv_heads: {build.heads} heads are not divisible by {kv_heads}"


def model_folder_problems(run_file: RunFile, vocab_size: int | None) -> Iterator[str]:
    """Does a model's folder go with tokenizer and context?"""
    path = run_file.model.path
    try:
        config = None if path is None else folder_config(path)
    except ValueError as error:
        yield f"model.path: {error}"
        return
    if config is None:
        return
    embeddings, positions = config.get("vocab_size"), config.get("max_position_embeddings")
    if vocab_size is not None and isinstance(embeddings, int) and embeddings < vocab_size:
        yield (
            f"model.tokenizer: it has {vocab_size:,} tokens, the model in '{path}' {embeddings:,} "
            "embeddings: choose the tokenizer that the model was made with"
        )
    if isinstance(positions, int) and positions < run_file.model.context:
        yield (
            f"model.context: is {run_file.model.context:,}, the model in '{path}' was made for at "
            f"most {positions:,}"
        )
