"""What a step leaves behind: figures, histograms for the tracker, and warnings told once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from manta.actors.histogram import Histogram
from manta.actors.step_work import StepReport
from manta.envs.records import GroupId, WeightVersion
from manta.envs.sources.order import EpochOrder
from manta.envs.step_records import Update
from manta.orchestrator.curriculum import Curriculum
from manta.orchestrator.curriculum_settings import CurriculumSettings
from manta.orchestrator.evaluate import Evaluation
from manta.orchestrator.feed import Feed
from manta.orchestrator.metrics import read_metrics
from manta.orchestrator.progress import Progress
from manta.orchestrator.recorder import Recorder
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.step_groups import LeftOut
from manta.orchestrator.summary import Summary
from manta.orchestrator.supply import Finished
from manta.orchestrator.wait import Waits
from tests.unit.orchestrator.groups import summary
from tests.unit.orchestrator.tiny_run import load

ADVANTAGES = Histogram((-1.0, 1.0), (8.0,))
GROUPS = [summary(GroupId(0, i, 0), (0.0, 1.0), {"correct": (0.0, 1.0)}) for i in range(2)]
FLAT = LeftOut(summary(GroupId(0, 2, 0), (1.0, 1.0), {"correct": (1.0, 1.0)}), "zero_variance: x")


class Notes:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.histograms: list[Mapping[str, Histogram]] = []
        self.alerts: list[str] = []

    def log(
        self, step: int, metrics: Mapping[str, float], histograms: Mapping[str, Histogram]
    ) -> None:
        self.histograms.append(histograms)

    def alert(self, title: str, text: str) -> None:
        self.alerts.append(title)

    def finish(self, summary: Summary) -> None:
        self.finished = summary


def recorder_of(folder: Path, position: int = 0) -> Recorder:
    run_file = load(folder, "stages.rl.algorithm.filters=[zero_variance]", f"run.dir={folder}")
    directory = RunDirectory.of(run_file)
    directory.root.mkdir(exist_ok=True)
    return Recorder(run_file, {}, directory, Waits(), position)


def make_steps(recorder: Recorder, progress: Progress, count: int) -> None:
    feed: Feed[Finished] = Feed(EpochOrder(9, 0), 2, False)
    recorder.enter_stage("rl", 5, feed, progress)
    for _ in range(count):
        progress.advance()
        update = Update(WeightVersion(progress.step, 0), {"ess": 0.1, "loss": 0.0}, "")
        report = StepReport(update, (), {}, histograms={"advantage": ADVANTAGES})
        recorder.step(progress, GROUPS, report, None, [FLAT])


def test_a_step_s_figures_and_histograms_and_a_warning_told_once(tmp_path: Path) -> None:
    recorder, notes, progress = recorder_of(tmp_path), Notes(), Progress("rl", step=3)
    recorder._tracker = notes
    make_steps(recorder, progress, 7)
    done = recorder.finish("finished", {}, None, {})
    line = read_metrics(tmp_path / "tiny" / "metrics.jsonl")[0].values
    assert line["learner/ess"] == 0.1
    assert line["pass_at/1"] == (0.5 + 0.5 + 1) / 3
    assert line["groups/filtered/zero_variance"] == 1
    assert line["reward/mean"] == 0.5, "of what trains"
    assert notes.histograms[0]["histogram/advantage"] == ADVANTAGES
    assert sum(notes.histograms[0]["histogram/length"].counts) == 4
    assert notes.alerts == ["tiny: ratio drift"]
    assert [told.partition(": the")[0] for told in done.alarms] == ["rl step 8: ratio drift"]
    assert done.figures()["alarms"] == 1


def test_an_evaluation_without_some_of_its_tasks_says_so_each_time(tmp_path: Path) -> None:
    recorder, notes, progress = recorder_of(tmp_path), Notes(), Progress("rl", step=4)
    recorder._tracker = notes
    for num_broken in (0, 3, 1):
        recorder.evaluation(progress, Evaluation(0.5, 0.5, 2.0, 8, None, num_broken=num_broken))
    done = recorder.finish("finished", {}, None, {})
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    assert [line.values["eval/broken"] for line in lines] == [0, 3, 1]
    assert [told.partition(" held-out tasks broke")[0][-1] for told in done.alarms] == ["3", "1"]


def test_histograms_need_no_tracker_and_are_cut_back_with_the_metrics(
    tmp_path: Path,
) -> None:
    path, progress = tmp_path / "tiny" / "histograms.jsonl", Progress("rl")
    first = recorder_of(tmp_path)
    make_steps(first, progress, 2)
    position = first.metrics_position()
    make_steps(first, progress, 3)
    before = path.read_text().splitlines()
    assert len(before) == 5
    told = json.loads(before[0])
    assert (told["stage"], told["step"]) == ("rl", 1)
    assert told["advantage"] == {"from": -1.0, "to": 1.0, "counts": [8.0]}
    assert sum(told["reward"]["counts"]) == 4
    recorder_of(tmp_path, position)
    assert path.read_text().splitlines() == before[:2]


def test_a_resumed_stage_goes_on_with_what_was_seen_and_told(tmp_path: Path) -> None:
    first = recorder_of(tmp_path)
    progress = Progress("rl")
    make_steps(first, progress, 6)
    position = first.metrics_position()
    second, notes = recorder_of(tmp_path, position), Notes()
    second._tracker = notes
    make_steps(second, progress, 6)
    assert notes.alerts == []
    events = (tmp_path / "tiny" / "events.jsonl").read_text().splitlines()
    told = [json.loads(line)["fields"] for line in events]
    assert [(each["kind"], each["stage"], each["step"]) for each in told] == [
        ("ratio drift", "rl", 5)
    ]


def test_each_step_says_what_the_curriculum_chose(tmp_path: Path) -> None:
    recorder, progress = recorder_of(tmp_path), Progress("rl")
    rule = CurriculumSettings(nearest_to=0.5)
    curriculum = Curriculum(rule, "correct", EpochOrder(9, 0), step=0)
    recorder.enter_stage("rl", 5, Feed(curriculum, 2, False), progress, curriculum=curriculum)
    curriculum.settle(1, GROUPS, {0})
    progress.advance()
    report = StepReport(Update(WeightVersion(1, 0), {}, ""), (), {})
    recorder.step(progress, GROUPS, report, None)
    recorder.finish("finished", {}, None, {})
    [line] = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    assert (line.values["curriculum/epoch"], line.values["curriculum/skipped_share"]) == (0, 0)
