"""The workers of a run's named scorers, from the driver's side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import ray
from ray.actor import ActorHandle

from manta.actors.scorer import ScorerWorker
from manta.actors.scorer_client import ScorerPlace
from manta.actors.scoring_queue import QueueFigures
from manta.orchestrator.config import ScorerConfig
from manta.orchestrator.pools import start


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
            versions: list[str] = await asyncio.gather(
                *(handle.load.remote(folder) for handle in self._handles[name].values())
            )
            if len(set(versions)) > 1:
                raise RuntimeError(
                    f"the workers of scorer '{name}' read different models from '{folder}': "
                    f"{', '.join(sorted(set(versions)))}; the folder must be the same on all nodes"
                )
            self._loaded[name] = folder, versions[0]
        return self._loaded[name][1]

    async def _figures(self, name: str) -> QueueFigures:
        handles = self._handles[name]
        answers: list[QueueFigures | BaseException] = await asyncio.gather(
            *(handle.figures.remote() for handle in handles.values()), return_exceptions=True
        )
        found: list[QueueFigures] = []
        for i, answer in zip(list(handles), answers, strict=True):
            if isinstance(answer, ray.exceptions.RayActorError):
                del handles[i]
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
        return QueueFigures(
            sum(each.calls for each in found),
            sum(each.waiting for each in found),
            tuple(seconds for each in found for seconds in each.seconds),
        )
