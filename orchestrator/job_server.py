"""A running cluster's job server, over Ray's own client.

Owns reaching it, what is said when that fails, and the words for jobs. Which job is whose, and what
a run's files say, is `manta.orchestrator.runs`' concern.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import aiohttp
import ray
import requests
from ray.job_submission import JobDetails, JobSubmissionClient

from manta.actors.job_variables import new_name, packed
from manta.envs.side_by_side import ending
from manta.orchestrator.job_address import VARIABLE
from manta.orchestrator.placement import refused
from manta.orchestrator.side_thread import in_thread

Status: TypeAlias = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]

SECONDS = 8.0
"""A server that has said nothing by then is not there."""
ANSWER_SECONDS = 30.0
"""A server that took a question and has said nothing by then hangs."""
WORK_SECONDS = 120.0
"""The same of what gives it something to do: a package to keep, a job to start or to stop."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job. `driver` is the process id of its driver and the address of its node, where it has
    one; times are seconds since the epoch."""

    id: str
    status: Status
    message: str
    metadata: Mapping[str, str]
    start: float | None
    end: float | None
    exit_code: int | None
    driver: tuple[int, str] | None = field(default=None)

    @property
    def has_ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class JobServer:
    """Raises ValueError, in words for a user, where the server cannot be reached, refuses the
    caller's token, or knows no such job."""

    def __init__(self, address: str) -> None:
        self.address = address
        _reach(self.address)
        # Ray lets this variable win over the address that a caller names
        os.environ[VARIABLE] = self.address
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._told():
            self._client = _Client(self.address)

    def submit(
        self,
        entrypoint: str,
        id: str,
        runtime_env: Mapping[str, object],
        metadata: Mapping[str, str],
        at: str | None = None,
    ) -> None:
        """Starts a job; with `at`, on the node of that address."""
        resources = {f"node:{at}": 0.001} if at is not None else None
        with self._told():
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=id,
                runtime_env=dict(runtime_env),
                metadata=dict(metadata),
                entrypoint_resources=resources,
            )

    def keep(self, everybodys: Mapping[str, str], drivers: Mapping[str, str]) -> str:
        """Brings a job's variables, and those of its driver alone, to the cluster's store; their
        name there."""
        name = new_name()
        with self._told():
            # Ray's client has no public call for bytes that are no package
            answer = self._client._do_request(
                "PUT", f"/api/packages/gcs/{name}", data=packed(everybodys, drivers)
            )
        if answer.status_code != 200:
            raise ValueError(f"{self.address} did not take the environment variables")
        return name

    def jobs(self) -> list[Job]:
        """Those that were submitted, the newest first."""
        with self._told():
            found = self._client.list_jobs()
        jobs = [_job(each) for each in found if each.submission_id]
        return sorted(jobs, key=lambda job: -(job.start or 0.0))

    def job(self, id: str) -> Job:
        with self._told():
            return _job(self._client.get_job_info(id))

    def logs(self, id: str) -> str:
        with self._told():
            return self._client.get_job_logs(id)

    async def follow(self, id: str) -> AsyncIterator[str]:
        """What the job prints, from its start, as it comes, until it ends. A job may print nothing
        for long: meanwhile the server is asked now and then whether it is there."""
        with self._told():
            async with aclosing(self._client.tail_job_logs(id)) as texts:  # type: ignore[type-var]
                while True:
                    coming = asyncio.ensure_future(anext(texts, None))
                    async with ending(coming):
                        while not (await asyncio.wait({coming}, timeout=ANSWER_SECONDS))[0]:
                            if (await in_thread(self.job, id)).has_ended:
                                return
                    text = coming.result()
                    if text is None:
                        return
                    yield text

    def stop(self, id: str) -> None:
        """SIGTERM to the driver; SIGKILL once the job's own patience is over."""
        with self._told():
            self._client.stop_job(id)

    def delete(self, id: str) -> None:
        """Takes a job that has ended off the list."""
        with self._told():
            self._client.delete_job(id)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            raise ValueError(refused(self.address)) from error
        except (requests.ReadTimeout, TimeoutError) as error:
            raise ValueError(_silent(self.address)) from error
        except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
            raise ValueError(_unreachable(self.address, str(error))) from error
        except RuntimeError as error:
            raise ValueError(f"the cluster at {self.address} said no: {error}") from error


class _Client(JobSubmissionClient):
    """Ray's, whose requests may wait without end where no one says how long."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        seconds = ANSWER_SECONDS if method == "GET" else WORK_SECONDS
        return super()._do_request(method, endpoint, timeout=seconds, **options)


def _reach(address: str) -> None:
    """Raises ValueError unless something answers at `address` in time. In a thread: looking up a
    name can take longer than any time-out of a connection."""
    failures: list[str] = ["no answer"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=SECONDS):
                failures.clear()
        except urllib.error.HTTPError as error:
            # Who asks for a token is there
            if error.code in (401, 403):
                failures.clear()
            else:
                failures[0] = f"HTTP status {error.code}"
        except (OSError, ValueError) as error:
            failures[0] = str(getattr(error, "reason", error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    if failures:
        raise ValueError(_unreachable(address, failures[0]))


def _unreachable(address: str, why: str) -> str:
    return (
        f"no Ray job server answers at {address} ({why}): is the cluster up, and its dashboard's "
        "port reachable from here (ray dashboard cluster.yaml, or kubectl port-forward)?"
    )


def _silent(address: str) -> str:
    return (
        f"the Ray job server at {address} takes requests and does not answer them: does its head "
        "hang, or have too much to do? Look at it (ray status there, its memory), then try again; "
        "what was asked for may be done all the same: manta runs list"
    )


def _job(found: JobDetails) -> Job:
    driver = found.driver_info
    return Job(
        id=found.submission_id or "",
        status=found.status.value,
        message=found.message or "",
        metadata=found.metadata or {},
        start=found.start_time / 1000 if found.start_time else None,
        end=found.end_time / 1000 if found.end_time else None,
        exit_code=found.driver_exit_code,
        driver=(int(driver.pid), driver.node_ip_address) if driver is not None else None,
    )
