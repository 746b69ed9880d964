"""Environment variables that a submitted job was given by name, such as API keys.

Owns how their values reach the job's processes. Ray shows a job's runtime environment to everybody
who may list jobs, so the values are not in it: they lie in the cluster's key-value store under a
random name, and only that name is in the runtime environment. Ray calls `take` in every worker
process of the job as it starts; the driver takes them, and those that are for it alone, by itself,
and deletes all when the run ends. Who may run code on the cluster can read them until then. Ray
loads only where there are some.
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
_EVERYBODYS, _DRIVERS = "everybodys", "drivers"
_SECONDS = 30.0
"""How long the cluster's store may take to answer."""


class VariablesGone(ValueError):
    """The values are not in the cluster's store any more."""


def new_name() -> str:
    """A name that nobody guesses, in the form that the cluster's upload of packages takes."""
    return f"_ray_pkg_{secrets.token_hex(24)}.zip"


def packed(everybodys: Mapping[str, str], drivers: Mapping[str, str]) -> bytes:
    """The values, as they are kept: `everybodys`, and those of the driver alone."""
    return json.dumps({_EVERYBODYS: dict(everybodys), _DRIVERS: dict(drivers)}).encode()


def take() -> None:
    """Sets what every process of the job has in this one.

    Raises VariablesGone where they are not there: the cluster's head was restarted, or the job has
    ended.
    """
    name = os.environ.get(NAME)
    if name is None:
        return
    from ray.experimental import internal_kv

    _set(internal_kv._internal_kv_get(_key(name)), _EVERYBODYS)


@contextmanager
def for_the_driver() -> Iterator[None]:
    """Around a job's driver: sets its variables, and takes the values out of the store when it is
    over, however it ends, short of SIGKILL.

    Raises ValueError where they are not there.
    """
    name, address = os.environ.get(NAME), os.environ.get("RAY_ADDRESS")
    if name is None or address is None:
        yield
        return
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RpcError

    # Until the run watches for it, a stop would end the process on the spot
    signal.signal(signal.SIGTERM, _leave)
    try:
        try:
            found = GcsClient(address=address).internal_kv_get(_key(name), None, _SECONDS)
        except RpcError as error:
            raise ValueError(
                f"the cluster at {address} could not be asked for the job's variables "
                f"({error}): submit the run again"
            ) from error
        _set(found, _EVERYBODYS, _DRIVERS)
        yield
    finally:
        # The driver has left the cluster by now; the store outlives it
        with suppress(RpcError):
            GcsClient(address=address).internal_kv_del(_key(name), False, None)


def _key(name: str) -> bytes:
    return f"gcs://{name}".encode()


def _set(kept: bytes | None, *parts: str) -> None:
    if kept is None:
        raise VariablesGone(
            "the environment variables that this job was submitted with are gone from the cluster "
            "(was its head restarted?): submit the run again, it goes on from its checkpoint"
        )
    found = json.loads(kept)
    for part in parts:
        os.environ.update(found[part])


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
