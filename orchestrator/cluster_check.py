"""`manta cluster check`: what a cluster file offers by role, and whether a run fits on it.

Owns the command's arguments and what it prints. Reads files only: no cloud is asked anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from manta.actors.worker_range import WorkerRange
from manta.orchestrator import node_types, run_file
from manta.orchestrator.cluster_fit import Fit, Request, fit, requests, told
from manta.orchestrator.node_types import ClusterFile, NodeType

DEFAULT = "cluster.yaml"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """`manta cluster check [FILE] [--run RUN.yaml] [KEY=VALUE ...]`."""
    command.add_argument(
        "words",
        metavar="FILE | KEY=VALUE",
        nargs="*",
        help=f"a Ray cluster-launcher file or KubeRay manifest (default: {DEFAULT}); with --run "
        "also what to set in the run file",
    )
    command.add_argument("--run", metavar="RUN.yaml", help="check that its workers fit")


def check(words: Sequence[str], run: str | None, console: Console) -> None:
    """Prints what the cluster file offers and, with `run`, the nodes that the run takes.

    Raises ValueError where the cluster file or the run file is wrong, or the run does not fit.
    """
    overrides = [word for word in words if "=" in word]
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise ValueError(f"give one cluster file, not {len(files)}: {', '.join(files)}")
    if overrides and run is None:
        raise ValueError(f"{overrides[0]} sets a key of a run file: name one by --run RUN.yaml")
    cluster = node_types.read(files[0] if files else DEFAULT)
    console.print(_offers(cluster))
    if not cluster.offered:
        console.print("No node type offers a role resource: every role may stand on any node.")
    if run is None:
        return
    loaded = run_file.load(run, overrides)
    wanted = requests(loaded, cluster.offered)
    found = fit(wanted, cluster)
    lines = [f"{_workers(each)} {each.role}, each with {told(each.resources)}" for each in wanted]
    if not found.problems:
        lines.append(f"{loaded.run.name} fits: it takes {_nodes(found)}")
        if any(each.more for each in wanted):
            lines += _at_most(fit([each.at_most for each in wanted], cluster))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.problems:
        raise ValueError("\n".join((f"{run} does not fit {cluster.path}", *found.problems)))


def _workers(request: Request) -> str:
    return f"{WorkerRange(request.workers, request.at_most.workers)}"


def _nodes(found: Fit) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.nodes.items())


def _at_most(found: Fit) -> list[str]:
    """A run that cannot grow to its most works, with fewer."""
    if not found.problems:
        return [f"with as many workers as may come it takes {_nodes(found)}"]
    return ["not all workers that may come have a place:", *(f"  {e}" for e in found.problems)]


def _offers(cluster: ClusterFile) -> Table:
    title = f"{cluster.kind} '{cluster.name}' ({cluster.path})"
    table = Table(title=title, title_justify="left")
    for heading in ("node type", "roles", "CPUs", "GPUs", "nodes", "machines"):
        table.add_column(heading, justify="right" if heading in ("CPUs", "GPUs") else "left")
    for kind in cluster.node_types:
        table.add_row(
            kind.name,
            _roles(kind, cluster),
            f"{kind.resources.get('CPU', 0):g}",
            f"{kind.resources.get('GPU', 0):g}",
            "1" if kind.is_head else f"{kind.least:g} to {kind.most:g}",
            "spot" if kind.is_spot else "on-demand",
        )
    return table


def _roles(kind: NodeType, cluster: ClusterFile) -> str:
    roles = ", ".join(role.removesuffix("_node") for role in kind.roles)
    if roles:
        return roles
    # Who asks for no role resource may stand anywhere
    return "driver" if kind.is_head else "-" if cluster.offered else "any"
