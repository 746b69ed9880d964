"""The reference policy of a stage: which weights it starts with, and when it follows the policy.

A reference that follows is renewed inside the publish of a step, before the step's slots are free:
groups that begin afterwards are scored by the new one. Its state is in the learner's folder of
every checkpoint inside of the stage, since the policies that it came from are gone; what a
reference starts with is read again by name.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from manta.actors.scorers.settings import Combination
from manta.actors.step_work import StepReport
from manta.actors.stored_folder import WrittenFile
from manta.actors.weights import Receipt
from manta.envs.records import WeightVersion
from manta.orchestrator.config import StageConfig
from manta.orchestrator.model_names import (
    EmaName,
    InitialName,
    Mixed,
    parse,
    parse_mixed,
    policy_before,
)
from manta.orchestrator.named_weights import Named
from manta.orchestrator.reference_config import RefreshConfig, StageReferenceConfig
from manta.orchestrator.run_context import RunContext

T = TypeVar("T")


def refresh_of(settings: StageReferenceConfig) -> RefreshConfig | None:
    """How a reference follows the policy; `model: ema(d)` is short for every step."""
    if settings.model is not None and isinstance(name := parse(settings.model), EmaName):
        return RefreshConfig(every_steps=1, how="ema", decay=name.decay)
    return settings.refresh


def _refuse_other(receipt: Receipt, named: Named) -> None:
    if receipt.sha256 != named.weights.sha256:
        raise RuntimeError(
            f"a reference worker received weights {receipt.sha256}, not {named.label}"
        )


class StageReference:
    def __init__(self, run: RunContext, stage: StageConfig) -> None:
        self._run, self._stage = run, stage
        settings = run.run_file.reference_of(stage)
        self._refresh = refresh_of(settings)
        self._model = settings.model
        self._combination = settings.combination

    async def open(self) -> None:
        """The workers score with the stage's reference, as it is where the run stands in it."""
        run, references = self._run, self._run.crew.references
        assert references is not None
        if self._refresh is not None and run.progress.stage_step > 0:
            learner = run.checkpoints.at_step(run.progress.step).learner
            assert learner is not None
            version = await self._wait("read the checkpoint", references.restore(learner.location))
        elif run.run_file.model.lora is not None:
            return  # the model without its adapter, which the workers built
        elif self._combination is not None:
            version = await self._combine(self._combination)
        else:
            version = await self._load()
        run.recorder.event("reference", {"stage": self._stage.name, "version": version})

    async def published(self, report: StepReport, stage_step: int) -> None:
        """The policy of `report`, that after `stage_step` steps, is in the weight store."""
        refresh = self._refresh
        if refresh is None or stage_step % refresh.every_steps:
            return
        run, version = self._run, report.update.version
        decay = refresh.decay if refresh.how == "ema" else None
        name = f"step:{version.step}" if decay is None else f"ema({decay:g})@{version.step}"
        sha256 = report.update.weights_hash
        assert run.crew.references is not None
        with run.recorder.phase("refresh_reference"):
            for is_again in (False, True):
                parcel = run.crew.client.parcel(version, None, is_again)
                receipts = await run.waits.wait(
                    f"the reference workers to follow the policy of step {version.step}",
                    run.crew.references.follow(parcel, sha256, name, decay),
                    run.deadline_seconds,
                )
                if all(receipt.sha256 == sha256 for receipt in receipts):
                    return
                if any(receipt.sha256 == sha256 for receipt in receipts):
                    break  # to those it must not come twice
        raise RuntimeError(
            f"a reference worker received other weights than those of step {version.step}, "
            f"{sha256[:12]}: start the run again, it goes on from its newest checkpoint"
        )

    def saving(self, save_to: str | None) -> Awaitable[tuple[WrittenFile, ...]] | None:
        """What a checkpoint inside of the stage must have of the reference, on its way to the
        learner's folder `save_to`."""
        if self._refresh is None or save_to is None or self._run.crew.references is None:
            return None
        return self._run.crew.references.save(save_to)

    async def _load(self) -> str:
        """Loads what the run file names; the version of that."""
        references = self._run.crew.references
        assert references is not None
        name = self._name()
        if isinstance(name, InitialName):
            held = await self._wait("say what they hold", references.version())
            if held.startswith("initial#"):
                return held
        named = await self._named(name)
        loading = references.load(named.weights, named.name)
        for receipt in await self._wait(f"load {named.name}", loading):
            _refuse_other(receipt, named)
        return named.label

    async def _combine(self, combination: Combination) -> str:
        """Loads the models of `combination`; the version of that."""
        references = self._run.crew.references
        assert references is not None
        parts = [await self._named(parse_mixed(name)) for name in combination.names]
        combining = references.combine(combination, [part.weights for part in parts])
        for receipts in await self._wait(f"load {combination}", combining):
            for receipt, part in zip(receipts, parts, strict=True):
                _refuse_other(receipt, part)
        return await self._wait("say what they hold", references.version())

    async def _named(self, name: Mixed) -> Named:
        """The weights that `name` means in this stage."""
        run = self._run
        version = WeightVersion(run.progress.step, run.incarnation)
        what = f"read {name}"
        return await run.storage.ask(what, run.named.named, name, self._stage, version)

    async def _wait(self, what: str, answer: Awaitable[T]) -> T:
        name = f"the reference workers of stage {self._stage.name} to {what}"
        return await self._run.waits.wait(name, answer, self._run.deadline_seconds)

    def _name(self) -> Mixed:
        """By default the policy when the stage starts."""
        own = None if self._model is None else parse(self._model)
        if own is not None and not isinstance(own, EmaName):
            return own
        if self._stage.start_from is not None:
            return parse_mixed(self._stage.start_from)
        return policy_before(self._run.run_file, self._stage)
