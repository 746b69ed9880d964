"""The workers of a run's named scorers, from the driver's side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import ray
from ray.actor import ActorHandle

from manta.actors.scorer import ScorerWorker
from manta.actors.scorer_client import ScorerPlace
from manta.actors.scoring_queue import QueueFigures
from manta.orchestrator.config import ScorerConfig
from manta.orchestrator.pools import start

T = TypeVar("T")


class NoScorerLeft(RuntimeError):
    """Every worker of a scorer has died."""


class ScorerPool:
    """`folder` says where the model of a scorer is, once a lane needs it."""

    def __init__(
        self,
        scorers: Mapping[str, ScorerConfig],
        cpus: Mapping[str, float],
        tokenizer: str,
        deterministic: bool,
        folder: Callable[[str], str],
    ) -> None:
        self._scorers, self._folder = scorers, folder
        self._handles: dict[str, dict[int, ActorHandle[ScorerWorker]]] = {
            name: {
                i: start(
                    ScorerWorker,
                    cpus[name],
                    tokenizer,
                    config.threads,
                    # What is scored together decides the last bit: then every row goes alone
                    1 if deterministic else config.tokens_per_batch,
                    config.dtype,
                    config.devices > 0,
                    gpus=config.devices,
                )
                for i in range(config.workers)
            }
            for name, config in scorers.items()
        }
        self._loaded: dict[str, tuple[str, str]] = {}
        self.lost: list[tuple[str, int]] = []

    def places(self) -> list[ScorerPlace]:
        """What a reward worker needs to call the scorers."""
        return [
            ScorerPlace(name, tuple(handles.values()), self._scorers[name].deadline_seconds)
            for name, handles in self._handles.items()
        ]

    def members(self) -> Mapping[str, ActorHandle[ScorerWorker]]:
        """By name, those that live, as far as is known."""
        return {
            f"{name}-{i}": handle
            for name, handles in self._handles.items()
            for i, handle in handles.items()
        }

    async def ready(self, names: Sequence[str]) -> Mapping[str, str]:
        """The versions of the models of `names`, which their workers hold from now on.

        Raises ValueError where a model is not there, and RuntimeError where two workers of a scorer
        read different ones.
        """
        versions = await asyncio.gather(*(self._ready(name) for name in names))
        return dict(zip(names, versions, strict=True))

    async def figures(self) -> Mapping[str, QueueFigures]:
        """By scorer, over its living workers. Workers that died are in `lost` from then on; raises
        NoScorerLeft where a scorer has no other."""
        return {name: await self._figures(name) for name in self._handles}

    async def _ready(self, name: str) -> str:
        folder = await asyncio.to_thread(self._folder, name)
        if self._loaded.get(name, ("", ""))[0] != folder:
            versions: list[str] = await self._living(
                name, lambda handle: handle.load.remote(folder)
            )
            if len(set(versions)) > 1:
                raise RuntimeError(
                    f"the workers of scorer '{name}' read different models from '{folder}': "
                    f"{', '.join(sorted(set(versions)))}; the folder must be the same on all nodes"
                )
            self._loaded[name] = folder, versions[0]
        return self._loaded[name][1]

    async def _figures(self, name: str) -> QueueFigures:
        found: list[QueueFigures] = await self._living(name, lambda handle: handle.figures.remote())
        return QueueFigures(
            sum(each.calls for each in found),
            sum(each.waiting for each in found),
            tuple(seconds for each in found for seconds in each.seconds),
        )

    async def _living(
        self, name: str, call: Callable[[ActorHandle[ScorerWorker]], Awaitable[T]]
    ) -> list[T]:
        """What each living worker answers; those that died are noted. Raises NoScorerLeft."""
        handles = self._handles[name]
        asked = list(handles)
        answers = await asyncio.gather(*(call(handles[i]) for i in asked), return_exceptions=True)
        found: list[T] = []
        for i, answer in zip(asked, answers, strict=True):
            if isinstance(answer, ray.exceptions.RayActorError):
                if handles.pop(i, None) is not None:
                    self.lost.append((name, i))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.append(answer)
        if not found:
            raise NoScorerLeft(
                f"all {self._scorers[name].workers} workers of scorer '{name}' have died: look at "
                "their logs in the Ray session directory (out of memory?), then start the run again"
            )
        return found
