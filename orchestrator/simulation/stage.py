"""A training stage in virtual time: the very feed, supply and loop, over stand-ins for the workers.

Owns putting them together, and the times of steps. What the stand-ins take is theirs to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from manta.actors.step_work import StepReport
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import GroupSummary
from manta.orchestrator.age_policy import NO_LIMIT, AgePolicy
from manta.orchestrator.alarms import Alarm
from manta.orchestrator.expected_lengths import ExpectedLengths
from manta.orchestrator.feed import Feed
from manta.orchestrator.ledger import Ledger
from manta.orchestrator.length_cap import LengthCap
from manta.orchestrator.loop import LoopHooks, LoopSettings, StageLoop, StepRecorder
from manta.orchestrator.progress import Progress
from manta.orchestrator.publish import Published
from manta.orchestrator.shared_device import StepMailbox
from manta.orchestrator.step_groups import LeftOut
from manta.orchestrator.supply import BlockPool, Finished, Supply
from manta.orchestrator.wait import Waits, unless_ended

NO_DEADLINE = 1e9
"""Seconds that a wait may take: what is simulated may last, and does not last decades."""


@dataclass(frozen=True, slots=True)
class SimulatedStage:
    """What is simulated: `steps` steps of `prompts` groups out of `feed`."""

    feed: Feed[Finished]
    algorithm: AlgorithmSettings
    prompts: int
    steps: int
    groups_per_call: int = 1
    ages: AgePolicy = NO_LIMIT
    cap: LengthCap | None = None
    lengths: ExpectedLengths | None = None
    name: str = "rl"


class StageParts:
    """The loop and supply of a stage over `pool`, `mailbox` and `publish`; `after` each step."""

    def __init__(
        self,
        stage: SimulatedStage,
        ledger: Ledger,
        pool: BlockPool,
        mailbox: StepMailbox,
        publish: Callable[[StepReport], Awaitable[Published]],
        recorder: StepRecorder,
        after: Callable[[int], Awaitable[None]],
    ) -> None:
        self.supply = Supply(
            stage.feed,
            pool,
            stage.name,
            stage.groups_per_call,
            stage.ages,
            stage.lengths,
            stage.cap,
        )
        hooks = LoopHooks(
            learning_rate=lambda step: 0.0,
            is_published=lambda step: True,
            save_to=_nowhere,
            inspect=_unseen,
            publish=publish,
            after=after,
        )
        self.loop = StageLoop(
            LoopSettings(
                stage.name, stage.algorithm, stage.prompts, stage.steps, NO_DEADLINE, stage.ages
            ),
            hooks,
            self.supply,
            mailbox,
            ledger,
            recorder,
            Progress(stage.name),
            Waits(),
        )

    async def run(self) -> None:
        await unless_ended(self.loop.run(asyncio.Event()), self.supply.run())


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """`ended` is on the virtual clock. `ages` of its groups in steps, by their oldest token."""

    ended: float
    samples: int
    tokens: int
    ages: tuple[int, ...]


class StepTimes:
    """A recorder that keeps of each step what a prediction needs."""

    def __init__(self) -> None:
        self.steps: list[SimulatedStep] = []
        self.alarms: list[Alarm] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def step(
        self,
        progress: Progress,
        summaries: Sequence[GroupSummary],
        report: StepReport,
        published: Published | None,
        left_out: Sequence[LeftOut],
    ) -> None:
        self.steps.append(
            SimulatedStep(
                asyncio.get_running_loop().time(),
                sum(len(each.rewards) for each in summaries),
                sum(int(each.num_tokens.sum()) for each in summaries),
                tuple(
                    progress.step - 1 - each.oldest.step
                    for each in summaries
                    if each.oldest is not None
                ),
            )
        )

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)


def ledger_in(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.jsonl")


async def _nowhere(step: int) -> None:
    """No step is saved."""


async def _unseen(report: StepReport) -> None:
    """Engines and learner agree here: their log-probs are not simulated."""
