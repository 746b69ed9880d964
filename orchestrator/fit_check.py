"""Whether a run can ever find its place on the cluster whose file it names (`run.cluster`).

Owns what is said of that in a run file's check. The packing is `manta.orchestrator.cluster_fit`'s;
what is up at the moment is looked at when the run joins, by `manta.orchestrator.placement`.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.orchestrator import node_types
from manta.orchestrator.cluster_fit import fit, requests
from manta.orchestrator.config import RunFile


def fit_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    path = run_file.run.cluster
    if path is None:
        return
    try:
        cluster = node_types.read(path)
    except ValueError as error:
        yield from (f"run.cluster: {told}" for told in str(error).splitlines())
        return
    for told in fit(requests(run_file, cluster.offered), cluster).problems:
        yield f"run.cluster: does not fit {path}: {told}"
