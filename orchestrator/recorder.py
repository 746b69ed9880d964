"""What a run leaves behind while it runs: metrics, events, timeline, tracker and display.

One place that the loop tells things to; it decides nothing. The end of a run, its summary and
picture, is written here too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import MappingProxyType

import numpy as np
from rich.console import Console

from manta.actors.device_turns import DeviceTurns
from manta.actors.histogram import Histogram, histogram_of
from manta.actors.router_figures import RouterFigures
from manta.actors.step_work import StepReport
from manta.algorithms.catalogue import idles_on_equal_rewards
from manta.envs.records import GroupSummary, Json
from manta.orchestrator import reward_gap
from manta.orchestrator.alarms import Alarm, StepAlarms, incomplete_evaluation
from manta.orchestrator.config import RunFile
from manta.orchestrator.curriculum import Curriculum
from manta.orchestrator.display import Display, DisplayState
from manta.orchestrator.evaluate import Evaluation
from manta.orchestrator.feed import Feed
from manta.orchestrator.histogram_file import HistogramFile
from manta.orchestrator.learning_alarms import LearningAlarms
from manta.orchestrator.length_cap import LengthCap
from manta.orchestrator.metrics import (
    ACCURACY,
    ALARM,
    CAP,
    DRIVER_CPU,
    KL,
    REWARD,
    STALENESS,
    MetricsLine,
    MetricsWriter,
    engine_metrics,
    read_metrics,
    step_metrics,
)
from manta.orchestrator.outcomes import outcome_metrics
from manta.orchestrator.phases import PhaseClock
from manta.orchestrator.picture import draw_learning_curve, has_curve
from manta.orchestrator.progress import Progress
from manta.orchestrator.publish import Published
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.step_groups import LeftOut
from manta.orchestrator.summary import (
    DriverFigures,
    State,
    Summary,
    summarise_run,
    summary_table,
    told_in,
    write_summary,
)
from manta.orchestrator.supply import Finished
from manta.orchestrator.tracking import Tracker, WandbTracker
from manta.orchestrator.wait import Waits

_REFRESH_SECONDS = 1.0


class Recorder:
    def __init__(
        self,
        run_file: RunFile,
        config: Mapping[str, Json],
        directory: RunDirectory,
        waits: Waits,
        metrics_position: int,
    ) -> None:
        """`config` is the resolved run file as plain values; metrics after `metrics_position`
        belong to a history that a resume leaves behind."""
        self._run_file, self._directory, self._waits = run_file, directory, waits
        self._metrics = MetricsWriter(directory)
        self._metrics.truncate(metrics_position)
        last = max((line.step for line in self._lines()), default=0)
        self._histograms = HistogramFile(directory.histograms, last)
        self._clock = PhaseClock(directory.timeline)
        self._console = Console()
        self._display = Display(sum(stage.steps for stage in run_file.stages), self._console)
        self._tracker: Tracker | None = None
        if run_file.track.wandb is not None:
            self._tracker = WandbTracker(
                run_file.track.wandb, directory, run_file.run.name, config, self._display.event
            )
        self._steps_done = 0
        self._step_started = time.perf_counter()
        self._step_cpu = self._clock.cpu_seconds()
        self._latest: dict[str, float] = {}
        self._at_step: tuple[int, dict[str, float]] = (-1, {})
        self._routing: RouterFigures | None = None
        self._scoring: Mapping[str, float] = {}
        self._pools: Mapping[str, float] = {}
        self._golds = {s.name: s.reward.gold for s in run_file.stages if s.reward is not None}
        self._stages = {stage.name: stage for stage in run_file.stages}
        self._turns: DeviceTurns | None = None
        self._stage = ("start-up", 0)
        self._feed: Feed[Finished] | None = None
        self._cap: LengthCap | None = None
        self._curriculum: Curriculum | None = None
        self._alarms = StepAlarms(run_file.rollout.placement == "colocated")
        self._learning = LearningAlarms(run_file.rollout.engine != "simulated")
        self._progress = Progress("start-up")

    def __enter__(self) -> Recorder:
        self._display.__enter__()
        self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
        return self

    def __exit__(self, *_: object) -> None:
        self._refreshing.cancel()
        self._display.__exit__(None, None, None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with self._clock.phase(name):
            yield

    def enter_stage(
        self,
        name: str,
        steps: int,
        feed: Feed[Finished],
        progress: Progress,
        cap: LengthCap | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        """From now on the display shows this stage and this feed's queues, and each step's metrics
        say where the cap stands, and what the curriculum chose."""
        self._stage, self._feed, self._progress, self._cap = (name, steps), feed, progress, cap
        self._curriculum = curriculum
        lines = [line.values for line in self._lines() if line.stage == name]
        algorithm = self._stages[name].algorithm
        can_idle = algorithm is not None and idles_on_equal_rewards(algorithm)
        told = told_in(self._directory, name) if lines else ()
        self._learning.enter(lines, told, can_idle)
        self._step_started = time.perf_counter()
        self._step_cpu = self._clock.cpu_seconds()

    def step(
        self,
        progress: Progress,
        summaries: Sequence[GroupSummary],
        report: StepReport | None,
        published: Published | None,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        """Logs the step that `progress` has just counted; `left_out` was filtered meanwhile."""
        update = dict(report.update.metrics) if report else {}
        if published is not None:
            update |= {
                "publish/probe_gap": published.probe_gap,
                "publish/engine_gap": published.engine_gap,
                "publish/bytes": float(published.num_bytes),
                "publish/resent": float(published.resent),
            }
            update |= engine_metrics(published.rows)
        phases = self._clock.take_step()
        if report is not None:
            phases |= {f"learner/{name}": value for name, value in report.timings.items()}
        now, cpu = time.perf_counter(), self._clock.cpu_seconds()
        metrics = step_metrics(
            progress.step - 1, summaries, update, phases, now - self._step_started
        )
        metrics[DRIVER_CPU] = cpu - self._step_cpu
        stage = self._stages[progress.stage]
        algorithm = stage.algorithm if stage.kind == "train" else None
        metrics |= outcome_metrics(summaries, left_out, stage.right_component, algorithm)
        if self._routing is not None:
            metrics |= self._routing.metrics()
        metrics |= {**self._scoring, **self._pools}
        if (gold := self._golds.get(progress.stage)) is not None:
            metrics |= reward_gap.agreement(summaries, gold)
        if self._turns is not None:
            metrics |= self._turns.take_metrics()
        if self._cap is not None:
            metrics[CAP] = float(self._cap.tokens)
        if self._curriculum is not None:
            metrics |= self._curriculum.metrics()
        self._step_started, self._step_cpu = now, cpu
        self._steps_done += 1
        spread = _spread(summaries, report) if summaries else {}
        if spread:
            self._histograms.log(progress.stage, progress.step, spread)
        self._log(progress, metrics, spread)
        alarms = self._alarms.step(progress.stage, metrics)
        for alarm in (*alarms, *self._learning.line(metrics)):
            self.alarm(alarm)
        self._show()

    def evaluation(self, progress: Progress, evaluation: Evaluation) -> None:
        """Logs a held-out evaluation at the current step."""
        metrics = {
            ACCURACY: evaluation.accuracy,
            reward_gap.PROXY: evaluation.reward,
            "eval/length": evaluation.mean_tokens,
            "eval/samples": float(evaluation.num_samples),
            "eval/broken": float(evaluation.num_broken),
        }
        if evaluation.gold_logprob is not None:
            metrics["eval/gold_logprob"] = evaluation.gold_logprob
        metrics |= {f"eval/{name}": value for name, value in evaluation.pass_at.items()}
        text = evaluation.told
        if evaluation.gold_reward is not None:
            mean, std = evaluation.gold_reward
            metrics |= {reward_gap.GOLD: mean, reward_gap.GOLD_STD: std}
            metrics[reward_gap.PROXY_STD] = evaluation.reward_std
            text += f", proxy reward {evaluation.reward:.3f}, gold reward {mean:.3f}"
        self._log(progress, metrics)
        for alarm in self._learning.line(metrics):
            self.alarm(alarm)
        self.event_text(f"{progress.stage} step {progress.stage_step}: {text}")
        if evaluation.num_broken:
            self.alarm(incomplete_evaluation(evaluation.num_broken))

    def watch(self, turns: DeviceTurns) -> None:
        """From now on every step says how its time was shared on a device."""
        self._turns = turns

    def event(self, name: str, fields: Mapping[str, Json], text: str = "") -> None:
        """Something happened that a reader of the run should see, as `text` if there is one."""
        self._metrics.event(name, fields)
        if text:
            self.event_text(text)
            return
        details = ", ".join(f"{key} {value}" for key, value in fields.items())
        self.event_text(f"{name}: {details}" if details else name)

    def alarm(self, alarm: Alarm) -> None:
        """Something goes wrong slowly: an event, and the tracker's business."""
        at = self._progress
        fields: dict[str, Json] = {"stage": at.stage, "step": at.step, **asdict(alarm)}
        self.event(ALARM, fields, f"alarm: {alarm}")
        if self._tracker is not None:
            self._tracker.alert(f"{self._run_file.run.name}: {alarm.kind}", str(alarm))

    def event_text(self, text: str) -> None:
        self._display.event(text)

    def routing(self, figures: RouterFigures) -> None:
        """What the router said last: part of every step's metrics, and of the display."""
        self._routing = figures

    def is_in(self, *phases: str) -> bool:
        """Is one of these phases under way?"""
        return self._clock.is_in(*phases)

    def pools(self, metrics: Mapping[str, float]) -> None:
        """How many workers there are: part of every step's metrics."""
        self._pools = metrics

    def scoring(self, metrics: Mapping[str, float]) -> None:
        """What the scorers said last: part of every step's metrics."""
        self._scoring = metrics

    def value(self, name: str, step: int) -> float | None:
        """What the newest step, if that is `step`, has measured under `name`."""
        value = self._at_step[1].get(name) if self._at_step[0] == step else None
        return None if value is None or math.isnan(value) else value

    def metrics_position(self) -> int:
        return self._metrics.position()

    def finish(
        self,
        state: State,
        ledger: Mapping[str, int],
        error: str | None,
        products: Mapping[str, str],
    ) -> Summary:
        """Writes the summary and the picture, tells the tracker, and closes everything."""
        lines = self._lines()
        driver = DriverFigures(
            self._metrics.seconds(),
            self._clock.totals(),
            self._clock.cpu_seconds(),
            self._steps_done,
            dict(ledger),
        )
        summary = replace(
            summarise_run(self._directory, lines, driver, state, error=error), products=products
        )
        with self._told_if_unwritten("the summary"):
            write_summary(self._directory, summary)
        with self._told_if_unwritten("the learning curve"):
            if has_curve(lines):
                draw_learning_curve(lines, self._directory.picture, self._run_file.run.name)
        if self._tracker is not None:
            self._tracker.finish(summary)
        self._metrics.close()
        self._clock.close()
        return summary

    @contextmanager
    def _told_if_unwritten(self, what: str) -> Iterator[None]:
        """A full disk must not hide how the run ended."""
        try:
            yield
        except OSError as error:
            self.event_text(f"{what} could not be written: {error}")

    def print_summary(self, summary: Summary) -> None:
        """The closing table; after the live display has ended."""
        self._console.print(summary_table(summary))
        if self._directory.picture.exists():
            self._console.print(f"learning curve: {self._directory.picture}", soft_wrap=True)

    def _lines(self) -> list[MetricsLine]:
        return read_metrics(self._directory.metrics)

    def _log(
        self,
        progress: Progress,
        metrics: Mapping[str, float],
        histograms: Mapping[str, Histogram] = MappingProxyType({}),
    ) -> None:
        self._latest |= metrics
        before = self._at_step[1] if self._at_step[0] == progress.step else {}
        self._at_step = (progress.step, {**before, **metrics})
        self._metrics.log(progress.stage, progress.step, metrics)
        if self._tracker is not None:
            named = {f"histogram/{name}": each for name, each in histograms.items()}
            self._tracker.log(progress.step, metrics, named)

    async def _refresh(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(_REFRESH_SECONDS)

    def _show(self) -> None:
        self._display.update(self.moment())

    def moment(self) -> DisplayState:
        """Where the run stands."""
        waiting = self._waits.current()
        latest = self._latest
        return DisplayState(
            stage=self._stage[0],
            stage_step=self._progress.stage_step,
            stage_steps=self._stage[1],
            step=self._progress.step,
            seconds=self._metrics.seconds(),
            reward=latest.get(REWARD),
            accuracy=latest.get(ACCURACY),
            kl=latest.get(KL),
            staleness=latest.get(STALENESS),
            tokens_per_second=latest.get("speed/tokens_per_second"),
            samples_per_second=latest.get("speed/samples_per_second"),
            groups_in_flight=self._feed.num_in_flight if self._feed else 0,
            groups_ready=self._feed.num_ready if self._feed else 0,
            engine_rows=self._routing.rows if self._routing else 0,
            calls_waiting=self._routing.waiting if self._routing else 0,
            longest_wait=self._routing.wait_max if self._routing else 0.0,
            waiting_for=waiting[0].name if waiting else None,
            waiting_since=waiting[0].since if waiting else 0.0,
        )


def _spread(summaries: Sequence[GroupSummary], report: StepReport | None) -> dict[str, Histogram]:
    """Of a step's samples, and what the learner told of its tokens."""
    found = {
        "reward": histogram_of(np.concatenate([each.rewards for each in summaries])),
        "length": histogram_of(np.concatenate([each.num_tokens for each in summaries])),
        **(report.histograms if report else {}),
    }
    return {name: each for name, each in found.items() if each is not None}
