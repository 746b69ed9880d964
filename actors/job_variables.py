"""Environment variables that a submitted job was given by name, such as API keys.

Owns how their values reach the job's processes. Ray shows a job's runtime environment to everybody
who may list jobs, so the values are not in it: they lie in the cluster's key-value store under a
random name, and only that name is in the runtime environment. Ray calls `take` in every worker
process of the job as it starts; the driver inherits from the job's supervisor, and deletes them
when the run ends. Who may run code on the cluster can read them until then. Ray loads only where
there are some.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

NAME = "MANTA_JOB_VARIABLES"
"""The environment variable that has the name of the values."""
HOOK = "manta.actors.job_variables.take"
"""What Ray's `worker_process_setup_hook` is for such a job."""


class VariablesGone(RuntimeError):
    """The values are not in the cluster's store any more."""


def new_name() -> str:
    """A name that nobody guesses, in the form that the cluster's upload of packages takes."""
    return f"_ray_pkg_{secrets.token_hex(24)}.zip"


def packed(values: Mapping[str, str]) -> bytes:
    return json.dumps(dict(values)).encode()


def take() -> None:
    """Sets the job's variables in this process.

    Raises VariablesGone where they are not there: the cluster's head was restarted, or the job has
    ended.
    """
    name = os.environ.get(NAME)
    if name is None:
        return
    from ray.experimental import internal_kv

    found = internal_kv._internal_kv_get(f"gcs://{name}")
    if found is None:
        raise VariablesGone(
            "the environment variables that this job was submitted with are gone from the cluster "
            "(was its head restarted?): submit the run again, it goes on from its checkpoint"
        )
    os.environ.update(json.loads(found))


@contextmanager
def forgotten_at_the_end() -> Iterator[None]:
    """Around a job's driver: takes the values out of the store when it is over, however it ends,
    short of SIGKILL."""
    name, address = os.environ.get(NAME), os.environ.get("RAY_ADDRESS")
    if name is None or address is None:
        yield
        return
    # Until the run watches for it, a stop would end the process on the spot
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.exceptions import RpcError

        # The driver has left the cluster by now; the store outlives it
        with suppress(RpcError):
            GcsClient(address=address).internal_kv_del(f"gcs://{name}".encode(), False, None)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
