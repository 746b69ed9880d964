"""The shape of the repository: who may import whom, and how."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("envs", "algorithms", "actors", "orchestrator")
MAY_IMPORT = {
    "envs": {"envs"},
    "algorithms": {"algorithms"},
    "actors": {"actors", "algorithms", "envs"},
    "orchestrator": {"orchestrator", "actors", "algorithms", "envs"},
}
MAY_USE_RAY = {
    "actors/alive.py",
    "actors/environment.py",
    "actors/hand_over.py",
    "actors/job_variables.py",
    "actors/learner.py",
    "actors/learner_falls.py",
    "actors/meeting.py",
    "actors/muster.py",
    "actors/rank.py",
    "actors/router.py",
    "actors/router_client.py",
    "actors/scorer_client.py",
    "actors/step_work.py",
    "orchestrator/actor_pool.py",
    "orchestrator/adoption.py",
    "orchestrator/delivery.py",
    "orchestrator/direct_delivery.py",
    "orchestrator/doctor_tasks.py",
    "orchestrator/health_watch.py",
    "orchestrator/draining_nodes.py",
    "orchestrator/controller_signs.py",
    "orchestrator/environment_pool.py",
    "orchestrator/evaluate.py",
    "orchestrator/job_actors.py",
    "orchestrator/job_server.py",
    "orchestrator/learner_fit.py",
    "orchestrator/learner_group.py",
    "orchestrator/lane_pool.py",
    "orchestrator/living.py",
    "orchestrator/local_ray.py",
    "orchestrator/past_life.py",
    "orchestrator/placement.py",
    "orchestrator/places.py",
    "orchestrator/pools.py",
    "orchestrator/publish.py",
    "orchestrator/rebirth.py",
    "orchestrator/reference_pool.py",
    "orchestrator/reward_pool.py",
    "orchestrator/rank_places.py",
    "orchestrator/rank_signs.py",
    "orchestrator/roster.py",
    "orchestrator/rollout_pool.py",
    "orchestrator/run.py",
    "orchestrator/run_evaluation.py",
    "orchestrator/scorer_pool.py",
    "orchestrator/seats.py",
    "orchestrator/supply.py",
    "orchestrator/unlisted_ranks.py",
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def test_code_folders_are_importable_through_relative_links() -> None:
    for package in PACKAGES:
        link = ROOT / "manta" / package
        assert link.is_symlink()
        assert link.readlink() == Path("..") / package


@pytest.mark.parametrize("path", list(sources(*PACKAGES, "tests", "benchmarks")), ids=relative)
def test_no_flat_imports(path: Path) -> None:
    flat = [name for name in imported(path) if name.split(".")[0] in PACKAGES]
    assert not flat, f"{path} imports {flat}: write manta.{flat[0]}"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_stands_below_them(package: str) -> None:
    for path in sources(package):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "manta" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[package], f"{path} imports {name}"


def test_ray_is_imported_only_where_actors_are_made_or_called() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in sources(*PACKAGES)
        if any(name.split(".")[0] == "ray" for name in imported(path))
    }
    assert users <= MAY_USE_RAY


@pytest.mark.parametrize("path", list(sources(*PACKAGES, "benchmarks")), ids=relative)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path}: which noun is missing?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length < 60, f"{path}:{node.lineno} {node.name}: {length} lines"


WORKERS = {"crew", "references", "_client"}
"""Parts of a dotted name behind which workers stand, for whoever decides about a run."""
WAITS_INSIDE = {"publish", "close"}
"""Methods that bring a name and a deadline of their own."""
INSIDE_OF_A_WAIT = {"delivery.py", "direct_delivery.py", "run_evaluation.py", "shared_device.py"}
"""Whose callers wait, by name and with a deadline, for all that they do."""
BESIDE = {"learner_group.py", "learner_sizing.py", "watch.py"}
"""Who asks on and on beside the run; the watchdog ends a mailbox that does not answer them."""


def dotted(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*dotted(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


@pytest.mark.parametrize("path", list(sources("orchestrator")), ids=relative)
def test_nobody_waits_for_a_worker_without_a_name_and_a_deadline(path: Path) -> None:
    if path.name in INSIDE_OF_A_WAIT | BESIDE:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            name = dotted(node.value.func)
            is_bare = WORKERS & set(name[:-1]) and name[-1] not in WAITS_INSIDE
            assert not is_bare, f"{path}:{node.lineno}: put {'.'.join(name)} into Waits.wait"


ASKS_NO_STORAGE = {
    "controller_signs.py",
    "draining_nodes.py",
    "head_watch.py",
    "health_watch.py",
    "rank_places.py",
    "unlisted_ranks.py",
}
"""Whose threads ask Ray or look at processes, which answer or fail: they are waited for, since one
that is in Ray's code as the process ends may abort it."""


@pytest.mark.parametrize("path", list(sources("orchestrator")), ids=relative)
def test_nobody_waits_for_storage_in_a_thread_that_could_not_be_left_behind(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    bare = [node.lineno for node in calls if dotted(node.func)[-1:] == ["to_thread"]]
    told = "put storage into Storage.ask, anything else into side_thread.in_thread"
    assert not bare or path.name in ASKS_NO_STORAGE, f"{path}:{bare}: {told}"
