"""Trackers: where a run's metrics go beside its own directory.

Owns the tracker seam and its Weights & Biases implementation. A tracker never stops a run: what it
cannot deliver is reported once, and the run directory has everything anyway. Credentials are the
tracker's own business (`wandb login`, WANDB_API_KEY); none is read or written here.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Protocol

from manta.actors.histogram import Histogram
from manta.envs.records import Json
from manta.orchestrator.config import WandbConfig
from manta.orchestrator.run_directory import RunDirectory, atomic_write
from manta.orchestrator.summary import Summary

_FINISH_SECONDS = 60


class Tracker(Protocol):
    """Takes metrics as they come, and alarms. No method raises for a tracker's own troubles."""

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        histograms: Mapping[str, Histogram] = MappingProxyType({}),
    ) -> None:
        """`step` counts the whole run's steps; after a resume, steps come again."""
        ...

    def alert(self, title: str, text: str) -> None:
        """Something that a person should know now."""
        ...

    def finish(self, summary: Summary) -> None: ...


class WandbTracker:
    """Weights & Biases. The run's id lies in `wandb/id` of the run directory, so that a resumed
    run goes on in the same one.

    `report` is called at most once, with a sentence, when the tracker fails; it is silent from
    then on. Starting gives up after `start_seconds`, finishing (the upload) after 60 s; what
    was not uploaded stays below `wandb/` for `wandb sync`.
    """

    def __init__(
        self,
        settings: WandbConfig,
        directory: RunDirectory,
        name: str,
        config: Mapping[str, Json],
        report: Callable[[str], None],
        start_seconds: float = 30,
    ) -> None:
        """`config` is the resolved run file as plain values."""
        # Imported here: a second of start-up that only its users pay.
        import wandb

        self._error, self._histogram = wandb.errors.Error, wandb.Histogram
        self._report = report
        self._run: Any = None
        self._failed = False
        with self._tolerating("start"):
            wandb.setup(wandb.Settings(silent=True))
            directory.wandb.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                mode=settings.mode,
                name=name,
                id=_stable_id(directory),
                resume="allow",
                dir=str(directory.root),
                config=dict(config),
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    save_code=False,
                    init_timeout=start_seconds,
                    login_timeout=start_seconds,
                ),
            )
            # Our own step axis: wandb's drops the steps that come again after a resume.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        histograms: Mapping[str, Histogram] = MappingProxyType({}),
    ) -> None:
        if not self._failed:
            drawn = {
                name: self._histogram(np_histogram=(list(each.counts), list(each.edges)))
                for name, each in histograms.items()
            }
            with self._tolerating("log"):
                self._run.log({"step": step, **metrics, **drawn})

    def alert(self, title: str, text: str) -> None:
        if not self._failed:
            with self._tolerating("alert"):
                self._run.alert(title, text)

    def finish(self, summary: Summary) -> None:
        """Uploads the summary's figures and what is left, for at most a minute."""
        if self._failed:
            return
        worker = threading.Thread(target=self._finish, args=(summary,), daemon=True)
        worker.start()
        worker.join(_FINISH_SECONDS)
        if worker.is_alive():
            self._fail(f"finish took longer than {_FINISH_SECONDS} s")

    def _finish(self, summary: Summary) -> None:
        with self._tolerating("finish"):
            self._run.summary.update(summary.figures())
            self._run.finish(exit_code=0 if summary.state == "finished" else 1)

    @contextmanager
    def _tolerating(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._error, OSError) as error:
            self._fail(f"{what}: {error}")

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._report(
                f"wandb stopped ({why}); the run goes on, its metrics are in the run directory"
            )


def _stable_id(directory: RunDirectory) -> str:
    path = directory.wandb / "id"
    if not path.exists():
        atomic_write(path, secrets.token_hex(4))
    return path.read_text()
