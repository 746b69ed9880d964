"""Cluster files as they are shipped, and what is told of wrong ones; no cloud is asked anything."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from manta.orchestrator import node_types
from manta.orchestrator.cli import main
from manta.orchestrator.cluster_fit import Request, fit
from manta.orchestrator.node_types import ClusterFile, NodeType
from manta.orchestrator.role_resources import asked
from tests.unit.orchestrator.tiny_run import write

ROOT = Path(__file__).parent.parent.parent.parent
DEPLOY = ROOT / "deploy"
LAUNCHER, CLUSTER, JOB = ROOT / "cluster.yaml", DEPLOY / "raycluster.yaml", DEPLOY / "rayjob.yaml"
SHIPPED = (LAUNCHER, CLUSTER, JOB)


def changed(folder: Path, text: str, old: str, new: str) -> str:
    assert old in text
    path = folder / "cluster.yaml"
    path.write_text(text.replace(old, new))
    return str(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_have_every_role_and_keep_learners_off_spot_machines(path: Path) -> None:
    cluster = node_types.read(str(path))
    assert cluster.offered == {"rollout_node", "learner_node", "environment_node"}
    for kind in cluster.node_types:
        assert not kind.is_spot or set(kind.roles) <= {"rollout_node", "environment_node"}
    if path != JOB:
        assert {kind.name for kind in cluster.node_types if kind.is_spot} == {
            "rollout", "environment"
        }  # fmt: skip
    (head,) = (kind for kind in cluster.node_types if kind.is_head)
    assert head.resources["CPU"] == 0


def test_the_launcher_file_is_valid_to_ray() -> None:
    """By Ray's own preparation and schema, as `ray up` does before it asks the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(LAUNCHER.read_text()))
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert any("constraints.txt -e ." in each for each in prepared["worker_setup_commands"])
    # A type's own list stands in for the others: it must do all that they do, and vLLM
    own = types["rollout"]["worker_setup_commands"]
    shared = prepared["worker_setup_commands"]
    assert len(own) == len(shared)
    assert [a for a, b in zip(own, shared, strict=True) if a != b] == [
        next(each for each in own if ".[vllm]" in each)
    ]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in prepared[commands][-1]


@pytest.mark.parametrize("path", [CLUSTER, JOB], ids=lambda path: path.name)
def test_groups_are_read_as_rays_autoscaler_reads_them(path: Path) -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    tree = yaml.safe_load(path.read_text())
    spec = tree["spec"].get("rayClusterSpec", tree["spec"])
    cr = {"metadata": {"name": "manta", "namespace": "default"}, "spec": copy.deepcopy(spec)}
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(cr)
    read = {kind.name: kind for kind in node_types.read(str(path)).node_types}
    read["headgroup"] = read.pop("head")
    assert read.keys() == derived["available_node_types"].keys()
    for name, theirs in derived["available_node_types"].items():
        resources = {key: value for key, value in theirs["resources"].items() if key != "memory"}
        ours = {key: value for key, value in read[name].resources.items() if value or key == "CPU"}
        assert ours == resources
        if name != "headgroup":
            assert (read[name].least, read[name].most) == (
                theirs["min_workers"], theirs["max_workers"]
            )  # fmt: skip


def test_containers_start_from_files_that_are_there() -> None:
    text = (ROOT / "deploy/Containerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    assert copied
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists()
    version = yaml.safe_load(CLUSTER.read_text())["spec"]["rayVersion"]
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text()


def test_check_says_what_nodes_offer_and_what_a_run_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path)
    assert main(["cluster", "check", str(LAUNCHER)]) == 0
    told = capsys.readouterr().out
    for words in ("Ray cluster launcher 'manta'", "0 to 16", "spot", "rollout", "driver"):
        assert words in told
    arguments = ["cluster", "check", str(CLUSTER), "--run", run, "rollout.devices=1",
                 "rollout.workers=3", "rollout.threads=4"]  # fmt: skip
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "3 rollout, each with 4 CPUs, 1 GPUs, rollout_node" in told
    assert "tiny fits: it takes 1 environment, 3 rollout, 1 learner" in told


@pytest.mark.parametrize(
    ("most", "message"),
    [
        (6, "with as many workers as may come it takes 1 environment, 6 rollout, 1 learner\n"),
        (20, "not all workers that may come have a place:\n  rollout: 4 of 20 workers, each with "),
    ],
)
def test_of_a_range_of_workers_the_least_must_fit_and_the_most_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], most: int, message: str
) -> None:
    arguments = ["cluster", "check", str(CLUSTER), "--run", write(tmp_path), "rollout.devices=1",
                 f"rollout.workers={{min: 3, max: {most}}}"]  # fmt: skip
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert f"3 to {most} rollout, each with 0.5 CPUs, 1 GPUs, rollout_node\n" in told
    assert "tiny fits: it takes 1 environment, 3 rollout, 1 learner\n" in told
    assert message in told


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["rollout.devices=8"],
         ["rollout: no node type can ever hold a worker, which asks for 0.5 CPUs, 8 GPUs, "
          "rollout_node on one node ('head' has 0 CPUs, 0 GPUs, no rollout_node; 'learner' has 4 "
          "GPUs, no rollout_node; 'rollout' has 1 GPUs; 'environment' has 0 GPUs, no "
          "rollout_node): give a node type more, or lower rollout.threads or rollout.devices in "
          "the run file"]),
        (["rollout.devices=1", "rollout.workers=20"],
         ["rollout: 4 of 20 workers, each with 0.5 CPUs, 1 GPUs, rollout_node, find no place even "
          "with every node up: raise the maximum of 'rollout' (at most 16) and max_workers (24), "
          "or lower rollout.workers in the run file"]),
        (["learner.threads=64", "reward_workers.workers=2000"],
         ["learner: no node type can ever hold a worker, which asks for 64 CPUs, learner_node"]),
    ],
    ids=["nowhere", "too-few", "cpus"],
)  # fmt: skip
def test_what_has_no_place_is_named_with_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], messages: list[str]
) -> None:
    run = write(tmp_path)
    assert main(["cluster", "check", str(LAUNCHER), "--run", run, *overrides]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"manta cluster: {run} does not fit {LAUNCHER}\n")
    for message in messages:
        assert message in told


@pytest.mark.parametrize(
    ("source", "old", "new", "message"),
    [
        (LAUNCHER, "min_workers: 1\n    max_workers: 8", "min_workers: 9\n    max_workers: 8",
         "node type 'environment': at least 9 and at most 8 nodes: the minimum must be 0 or more "
         "and not above the maximum"),
        (LAUNCHER, "\nmax_workers: 24", "\nmax_workers: 0",
         "max_workers: is 0, and the node types' min_workers come to 1"),
        (LAUNCHER, "head_node_type: head", "head_node_type: boss",
         "head_node_type: is 'boss', must be one of available_node_types (head, learner"),
        (LAUNCHER, "CPU: 8, GPU: 1", "GPU: 1",
         "available_node_types.rollout.resources: gives no CPUs: say how many a node has"),
        (LAUNCHER, "rollout_node: 1", "rollout_node: many",
         "available_node_types.rollout.resources.rollout_node: 'many' is not of type 'integer'"),
        (LAUNCHER, "upscaling_speed: 2.0", "upscale: 2.0",
         "Additional properties are not allowed ('upscale' was unexpected)"),
        (LAUNCHER, "InstanceType: g6e.12xlarge",
         "InstanceType: g6e.12xlarge, InstanceMarketOptions: {MarketType: spot}",
         "node type 'learner' offers learner_node and is on spot machines"),
        (LAUNCHER, "InstanceType: m7i.2xlarge",
         "InstanceType: m7i.2xlarge, InstanceMarketOptions: {MarketType: spot}",
         "node type 'head' is the head and on spot machines"),
        (CLUSTER, "minReplicas: 1", "minReplicas: 9",
         "node type 'environment': at least 9 and at most 8 nodes"),
        (CLUSTER, "maxReplicas: 16", "maximum: 16",
         "spec.workerGroupSpecs[1].maximum: KubeRay's API reference has no such field"),
        (CLUSTER, '{num-cpus: "0"}', "{num-cpus: 0}",
         "spec.headGroupSpec.rayStartParams.num-cpus: is 0, must be text: put it in quotes"),
        (CLUSTER, '\'"{\\"rollout_node\\": 1}"\'', '"rollout_node: 1"',
         "spec.workerGroupSpecs[1]: rayStartParams.resources: is 'rollout_node: 1', must look"),
        (JOB, "entrypoint:", "command:", "spec.entrypoint: is missing"),
        (JOB, "apiVersion: ray.io/v1\n", "apiVersion: ray.io/v1alpha1\n",
         "apiVersion: is 'ray.io/v1alpha1', must be ray.io/v1"),
        (CLUSTER, "kind: RayCluster", "kind: Deployment", "has 0 clusters, give a file with one"),
        (CLUSTER, "spec:\n  rayVersion", "spec: [\n  rayVersion", "not valid YAML"),
    ],
)  # fmt: skip
def test_wrong_cluster_files_exit_2_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
    source: Path, old: str, new: str, message: str,
) -> None:  # fmt: skip
    path = changed(tmp_path, source.read_text(), old, new)
    assert main(["cluster", "check", path]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"manta cluster: {path}: ")
    assert message in captured.err
    assert captured.out == ""


def test_wrong_words_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"cluster_name: \xff")
    for arguments, message in (
        ([str(tmp_path / "bytes.yaml")], "bytes.yaml: is not UTF-8 text: invalid start byte"),
        (["absent.yaml"], "absent.yaml: No such file or directory: name a cluster file"),
        ([str(LAUNCHER), str(CLUSTER)], "give one cluster file, not 2"),
        ([str(LAUNCHER), "rollout.workers=2"], "rollout.workers=2 sets a key of a run file"),
        ([str(LAUNCHER), "--run", "absent.yaml"], "absent.yaml: there is no such run file"),
    ):
        assert main(["cluster", "check", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_role_resources_count_only_where_they_are_offered() -> None:
    assert asked("rollout", {"rollout_node"}) == {"rollout_node": 0.001}
    assert asked("reward", {"environment_node"}) == {"environment_node": 0.001}
    assert asked("reference", {"learner_node"}) == asked("scorer x", {"learner_node"})
    assert asked("rollout", {"learner_node"}) == {}


def test_packing_leaves_gpus_to_those_that_need_them_and_counts_what_is_left_over() -> None:
    kinds = (
        NodeType("head", {"CPU": 2}, 1, 1, is_head=True),
        NodeType("gpu", {"CPU": 8, "GPU": 2}, 0, 2),
        NodeType("cpu", {"CPU": 4}, 0, 9),
    )
    cluster = ClusterFile("x", "test", "x", kinds, max_workers=3)
    thinkers, doers = Request("learner", 4, {"CPU": 3, "GPU": 1}), Request("reward", 4, {"CPU": 2})
    assert fit([doers, thinkers], cluster).nodes == {"gpu": 2, "head": 1, "cpu": 1}
    assert fit([doers, thinkers], cluster).problems == ()
    (problem,) = fit([Request("reward", 8, {"CPU": 2}), thinkers], cluster).problems
    assert "reward: 3 of 8 workers" in problem


def test_packing_takes_every_node_up_before_it_leaves_workers_out() -> None:
    small, large = NodeType("small", {"CPU": 1}, 0, 9), NodeType("large", {"CPU": 8}, 0, 9)
    cluster = ClusterFile("x", "test", "x", (small, large), max_workers=1)
    assert fit([Request("reward", 2, {"CPU": 1})], cluster).nodes == {"large": 1}
    two = ClusterFile("x", "test", "x", (NodeType("node", {"CPU": 10}, 2, 2),))
    uneven = [Request("learner", 2, {"CPU": 4}), Request("rollout", 4, {"CPU": 3})]
    assert fit(uneven, two).nodes == {"node": 2}
    (problem,) = fit([*uneven, Request("reward", 1, {"CPU": 1})], two).problems
    assert "find no place even with every node up" in problem
