"""A Ray that Manta starts for itself: shut to other machines, and to other users of this one.

Owns the environment in which its processes start: where they listen, the token that they ask for,
the folder that they write to, and which variables of this process they inherit. Ray itself would
take the machine's outside address, listen on all interfaces, keep a token that whoever may read
`~/.ray` can use, and have everybody write to `/tmp/ray`.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from manta.actors.restored_environment import restored_environment

LOCAL_DEFAULTS = {
    # Nothing is reported to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # No workers ahead of need: they would import everything on a machine that is busy starting.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # How often Ray Train looks at its ranks (2 s): a run's start and end wait for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # OpenMP threads wait by spinning. Where roles share cores, a spinning thread keeps the core
    # from the very thread that it waits for (37 times slower, measured): soon they shall sleep.
    "GOMP_SPINCOUNT": "2000",
    # Ray gives its workers a niceness of 15: whatever else runs would starve them.
    "RAY_worker_niceness": "0",
    # Learner ranks meet on the loopback interface too, not on what the host's name stands for.
    "GLOO_SOCKET_IFNAME": "lo",
}
"""Environment variables of a local Ray's processes."""
_SECRET = re.compile(
    r"(?!RAY_).*(API_KEY|SECRET|PASSWORD|CREDENTIAL|TOKEN(?!S|IZ|_FILE|_PATH))", re.IGNORECASE
)
"""Names of variables. A number of tokens is no secret, nor is where a file with one lies; Ray's own
are Ray's."""
_TOKEN = secrets.token_hex(32)
"""That of every Ray that this process starts."""


@contextmanager
def environment_of_a_local_ray(working_dir: str, handed_on: Collection[str] = ()) -> Iterator[None]:
    """This process's environment as the processes of a Ray shall inherit it that is started inside:
    no secrets but those in `handed_on`, by name; plug-ins below `working_dir` on the Python path.

    Raises ValueError where the folder that it would write to is not this user's alone.
    """
    with restored_environment() as environment:
        for name in [name for name in environment if _SECRET.match(name)]:
            if name not in handed_on:
                del environment[name]
        path = [working_dir, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        for name, value in LOCAL_DEFAULTS.items():
            environment.setdefault(name, value)
        if "RAY_TMPDIR" not in environment:
            environment["RAY_TMPDIR"] = str(_own_folder())
        environment.pop("RAY_AUTH_TOKEN_PATH", None)
        environment.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN})
        # A certificate is for the addresses that a node has in a cluster
        environment["RAY_USE_TLS"] = "0"
        # Ray has read all that already
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
        environment[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        with _at_localhost():
            yield


@contextmanager
def _at_localhost() -> Iterator[None]:
    """As on systems where Ray keeps to one machine: its address is localhost's, and who has that
    listens there alone. Ray reads the variable for that when it is imported."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _own_folder() -> Path:
    """Where Ray's sessions lie, which Ray lets everybody write to: nobody else may enter."""
    folder = Path(os.environ.get("TMPDIR") or "/tmp") / f"manta-ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ValueError(
                f"{folder}: Ray would keep its sockets and logs there, and others may enter or own "
                "it: remove it, or set RAY_TMPDIR to a folder that is yours alone"
            ) from None
    return folder
