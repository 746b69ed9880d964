"""The workers of a run's named scorers, from the driver's side."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ray.actor import ActorHandle

from manta.actors.scorer import ScorerWorker
from manta.actors.scorer_client import ScorerPlace
from manta.actors.scorers.settings import ScorerConfig
from manta.actors.scoring_queue import QueueFigures
from manta.orchestrator.actor_pool import ActorPool
from manta.orchestrator.pools import ask_each, start
from manta.orchestrator.scorers import role
from manta.orchestrator.seats import Seats
from manta.orchestrator.side_thread import in_thread


class _Scorer(ActorPool[ScorerWorker]):
    """The workers of one scorer, as the role of their seats. A new one loads the model that the
    others have before it is called."""

    def __init__(
        self,
        name: str,
        config: ScorerConfig,
        cpus: float,
        tokenizer: str,
        deterministic: bool,
    ) -> None:
        self.role = f"worker of {role(name)}"
        self.config, self._name, self._cpus = config, name, cpus
        self._tokenizer, self._deterministic = tokenizer, deterministic
        self._numbers = itertools.count()
        self.folder = self.version = ""
        super().__init__(config.workers)

    def start(self, seat: int) -> tuple[str, ActorHandle[ScorerWorker]]:
        config = self.config
        handle = start(
            ScorerWorker,
            self._cpus,
            self._tokenizer,
            config.threads,
            # What is scored together decides the last bit: then every row goes alone
            1 if self._deterministic else config.tokens_per_batch,
            config.dtype,
            config.devices > 0,
            config.kind,
            gpus=config.devices,
            role=role(self._name),
        )
        return f"{self._name}-{next(self._numbers)}", handle

    async def join(self, name: str, worker: ActorHandle[ScorerWorker]) -> None:
        if name in self.living.workers:
            await worker.figures.remote()
            return
        loaded = None
        while loaded != self.folder:
            loaded = self.folder
            self._check([await worker.load.remote(loaded)] if loaded else [])
        self.living.newcomers[name] = worker
        self.living.come(name)
        await self.tell()

    async def load(self, folder: str) -> str:
        """The version of the model in `folder`, which all workers hold from now on."""
        if self.folder != folder:
            self.folder, self.version = folder, ""
            self._check(await self.living.tell_all(lambda worker: worker.load.remote(folder)))
        return self.version

    def _check(self, versions: Sequence[str]) -> None:
        found = {*versions, *([self.version] if self.version else [])}
        if len(found) > 1:
            raise RuntimeError(
                f"the workers of scorer '{self._name}' read different models from "
                f"'{self.folder}': {', '.join(sorted(found))}; the folder must be the same on all "
                "nodes"
            )
        self.version = "".join(found)


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
        self._folder = folder
        self._scorers = {
            name: _Scorer(name, config, cpus[name], tokenizer, deterministic)
            for name, config in scorers.items()
        }

    def tell_of_changes(self, told: Callable[[], Awaitable[None]]) -> None:
        """`told` is awaited whenever other workers can be called."""
        for scorer in self._scorers.values():
            scorer.tell = told

    @property
    def seats(self) -> list[Seats[ActorHandle[ScorerWorker]]]:
        return [scorer.seats for scorer in self._scorers.values()]

    def places(self) -> list[ScorerPlace]:
        """What a reward worker needs to call the scorers."""
        return [
            ScorerPlace(name, tuple(scorer.living.workers.values()), scorer.config.deadline_seconds)
            for name, scorer in self._scorers.items()
        ]

    async def ready(self, names: Sequence[str]) -> Mapping[str, str]:
        """The versions of the models of `names`, which their workers hold from now on.

        Raises ValueError where a model is not there, and RuntimeError where two workers of a scorer
        read different ones.
        """
        versions = await asyncio.gather(*(self._ready(name) for name in names))
        return dict(zip(names, versions, strict=True))

    async def figures(self) -> Mapping[str, QueueFigures]:
        """By scorer, over its living workers."""
        return {name: await _figures(scorer) for name, scorer in self._scorers.items()}

    async def _ready(self, name: str) -> str:
        folder = await in_thread(self._folder, name)
        return await self._scorers[name].load(folder)


async def _figures(scorer: _Scorer) -> QueueFigures:
    found: list[QueueFigures] = await ask_each(
        scorer.living.workers, lambda worker: worker.figures.remote()
    )
    return QueueFigures(
        sum(each.calls for each in found),
        sum(each.waiting for each in found),
        tuple(seconds for each in found for seconds in each.seconds),
    )
