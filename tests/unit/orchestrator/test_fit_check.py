"""Runs that no node of their cluster can hold: told of the file, and of the nodes that are up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from manta.orchestrator.cli import main
from manta.orchestrator.cluster_fit import requests
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.fit_check import fit_problems
from manta.orchestrator.placement import Cluster, NotEnoughResources, check_resources
from manta.orchestrator.plan.options import checkable
from tests.unit.orchestrator.tiny_run import load, write

ROOT = Path(__file__).parent.parent.parent.parent
LAUNCHER, MANIFEST = str(ROOT / "cluster.yaml"), str(ROOT / "deploy/raycluster.yaml")
BESIDE = ("rollout.placement=colocated", "learner.backend=fsdp")

REFUSED = [
    (["rollout.devices=8"],
     "rollout: no node type can ever hold a worker, which asks for 0.5 CPUs, 8 GPUs, rollout_node "
     "on one node ('head' has 0 CPUs, 0 GPUs, no rollout_node; 'learner' has 4 GPUs, no "
     "rollout_node; 'rollout' has 1 GPUs; 'environment' has 0 GPUs, no rollout_node): give a node "
     "type more, or lower rollout.threads or rollout.devices in the run file"),
    (["rollout.threads=9"], "rollout: no node type can ever hold a worker, which asks for 9 CPUs"),
    (["learner.threads=49"], "lower learner.threads or learner.devices in the run file"),
    (["learner.workers=17", "learner.devices=1"], "learner: 1 of 17 workers, each with 0.5 CPUs"),
    (["rollout.workers=17", "rollout.devices=1"], "or lower rollout.workers in the run file"),
    ([*BESIDE, "rollout.devices=8", "learner.workers=8"],
     "rollout beside learner: no node type can ever hold a worker, which asks for 4.5 CPUs, 8 "
     "GPUs, learner_node on one node"),
    ([*BESIDE, "rollout.threads=40", "learner.threads=9"],
     "rollout beside learner: no node type can ever hold a worker, which asks for 49 CPUs"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_what_no_node_type_of_the_named_cluster_can_give_is_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    loaded = load(tmp_path, f"run.cluster={LAUNCHER}", *overrides)
    (problem,) = fit_problems(loaded)
    assert problem.startswith(f"run.cluster: does not fit {LAUNCHER}: ")
    assert message in problem
    assert problem in cross_check(loaded)
    assert list(fit_problems(checkable(loaded))) == []


@pytest.mark.parametrize("file", [LAUNCHER, MANIFEST])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["rollout.workers=16", "rollout.devices=1", "rollout.threads=8"],
        # A range has a place when its least has
        ["rollout.workers={min: 2, max: 400}", "rollout.devices=1"],
        ["learner.workers={min: 1, max: 64}", "learner.devices=1"],
        ["learner.workers=16", "learner.devices=1"],
        [*BESIDE, "rollout.devices=4", "learner.workers=4"],
        [*BESIDE, "rollout.workers=8", "rollout.devices=2", "learner.workers=16"],
    ],
)
def test_what_can_find_a_place_passes(tmp_path: Path, file: str, overrides: list[str]) -> None:
    assert list(fit_problems(load(tmp_path, f"run.cluster={file}", *overrides))) == []


@pytest.mark.parametrize("command", ["train", "check", "submit"])
def test_commands_exit_2_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    run = write(tmp_path)
    words = [f"run.cluster={LAUNCHER}", f"run.dir={tmp_path}", "learner.threads=64"]
    assert main([command, run, *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"manta {command}: {run}: run.cluster: does not fit {LAUNCHER}: learner")
    assert list(tmp_path.iterdir()) == [tmp_path / "run.yaml"]


def living(*nodes: Mapping[str, float]) -> Cluster:
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return Cluster("10.0.0.1:6379", cpus, gpus, nodes)


HEAD = {"memory": 8e9, "node:__internal_head__": 1.0}
SMALL = {"CPU": 8.0, "GPU": 4.0}
PLAIN = {"CPU": 32.0}


@pytest.mark.parametrize(
    ("overrides", "cluster", "message"),
    [
        (["rollout.devices=8"], living(HEAD, SMALL, SMALL),
         "rollout: no node can hold a worker, which asks for 0.5 CPUs, 8 GPUs on one node; the one "
         "that comes nearest has 8 CPUs, 4 GPUs: join one that has it all, or lower "
         "rollout.threads or rollout.devices in the run file; where an autoscaler may start larger "
         "nodes, name the file that says which (run.cluster)"),
        (["rollout.threads=9"], living(HEAD, SMALL, SMALL),
         "which asks for 9 CPUs on one node; the one that comes nearest has 8 CPUs: join"),
        # Enough GPUs on one node, enough CPUs on another
        (["learner.threads=16", "learner.devices=1"], living(SMALL, PLAIN),
         "learner: no node can hold a worker, which asks for 16 CPUs, 1 GPUs on one node"),
        (["rollout.devices=1"],
         living({**SMALL, "learner_node": 1.0}, {**PLAIN, "rollout_node": 1.0}),
         "asks for 0.5 CPUs, 1 GPUs, rollout_node on one node; the one that comes nearest has 8 "
         "CPUs, 4 GPUs, no rollout_node: join one"),
        ([*BESIDE, "rollout.devices=8", "learner.workers=8"], living(SMALL, SMALL),
         "rollout beside learner: no node can hold a worker, which asks for 4.5 CPUs, 8 GPUs on"),
    ],
)  # fmt: skip
def test_one_worker_must_have_room_on_one_node_that_is_up(
    tmp_path: Path, overrides: list[str], cluster: Cluster, message: str
) -> None:
    with pytest.raises(NotEnoughResources) as caught:
        check_resources(load(tmp_path, *overrides), cluster)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "cluster"),
    [
        ([], living({"CPU": 4.0})),
        (["rollout.devices=4"], living(HEAD, SMALL)),
        # As it is told of larger nodes that the autoscaler may start
        (["rollout.devices=8"], living(HEAD, SMALL, {"CPU": 8.0, "GPU": 8.0})),
        (["rollout.workers={min: 1, max: 99}", "rollout.threads=8"], living(HEAD, SMALL, SMALL)),
        # Where no node offers a role's resource, it may stand anywhere
        (["rollout.devices=1"], living({**SMALL, "rollout_node": 1.0}, PLAIN)),
        ([*BESIDE, "rollout.devices=4", "learner.workers=4"], living(HEAD, SMALL)),
        ([*BESIDE, "rollout.devices=1"], living({**SMALL, "learner_node": 1.0},
                                               {**PLAIN, "rollout_node": 1.0})),
    ],
)  # fmt: skip
def test_nodes_that_are_large_enough_pass(
    tmp_path: Path, overrides: list[str], cluster: Cluster
) -> None:
    check_resources(load(tmp_path, *overrides), cluster)


def test_colocated_engines_are_asked_for_with_the_ranks_that_they_stand_beside(
    tmp_path: Path,
) -> None:
    loaded = load(tmp_path, *BESIDE, "rollout.workers=2", "rollout.devices=2", "learner.workers=4")
    found = requests(loaded, frozenset({"rollout_node", "learner_node"}))
    engines = {"CPU": 1.5, "GPU": 2, "learner_node": 0.001}
    assert (found[0].role, found[0].workers, found[0].resources) == (
        "rollout beside learner", 2, engines,
    )  # fmt: skip
    assert {"rollout", "learner"}.isdisjoint(each.role for each in found)
