from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manta.actors.engines.occupancy import NOT_COUNTED, EngineWork, RowSeconds
from manta.envs.records import CompanionSummary, GroupId, GroupSummary, WeightVersion
from manta.orchestrator.metrics import (
    IDLE_SHARE,
    MetricsLine,
    MetricsWriter,
    engine_metrics,
    engine_work,
    read_metrics,
    step_metrics,
)
from manta.orchestrator.run_directory import RunDirectory

NAN = math.nan


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def summary(
    rewards: list[float],
    tokens: list[int],
    components: dict[str, list[float]],
    oldest: int | None,
    truncated: int = 0,
) -> GroupSummary:
    version = None if oldest is None else WeightVersion(oldest, 0)
    return GroupSummary(
        id=GroupId(0, 0, 0),
        task_id="add/0",
        rewards=np.array(rewards, np.float32),
        components={name: np.array(values, np.float32) for name, values in components.items()},
        num_tokens=np.array(tokens, np.int32),
        lengths=np.array(tokens, np.int32) + 10,
        is_truncated=np.arange(len(rewards)) < truncated,
        oldest=version,
        newest=version,
        content_hash="",
        timings={"score": 0.5} if oldest else {},
    )


def test_step_metrics_by_hand() -> None:
    summaries = [
        summary([1, 0, 1, 0], [4, 4, 8, 8], {"correct": [1, 0, 1, 0]}, oldest=5, truncated=2),
        summary([2, 2], [10, 20], {"correct": [1, 1], "judge": [0.5, NAN]}, oldest=7),
    ]
    metrics = step_metrics(
        7, summaries, {"loss": 0.5, "probe/gap": 0.1}, {"learn": 1.5}, seconds=2.0
    )
    assert metrics["reward/mean"] == pytest.approx(1.0)
    assert metrics["reward/std"] == pytest.approx(math.sqrt((0 + 1 + 0 + 1 + 1 + 1) / 6))
    assert metrics["reward/correct"] == pytest.approx(4 / 6)
    assert metrics["reward/correct/present"] == 1.0
    assert metrics["reward/judge"] == 0.5
    assert metrics["reward/judge/present"] == pytest.approx(1 / 6)
    assert metrics["length/mean"] == 9.0
    assert metrics["length/p50"] == 8.0
    assert metrics["length/p95"] == pytest.approx(17.5)
    assert metrics["length/max"] == 20.0
    assert metrics["length/truncated_share"] == pytest.approx(2 / 6)
    assert (metrics["tokens/completion"], metrics["tokens/total"]) == (54.0, 114.0)
    assert metrics["groups"] == 2.0
    assert [metrics[f"reward/{name}"] for name in ("p05", "p50", "p95")] == [0.0, 1.0, 2.0]
    assert (metrics["staleness/mean"], metrics["staleness/max"]) == (1.0, 2.0)
    assert metrics["speed/tokens_per_second"] == 27.0
    assert metrics["speed/samples_per_second"] == 3.0
    assert (metrics["learner/loss"], metrics["probe/gap"]) == (0.5, 0.1)
    assert (metrics["time/learn"], metrics["time/step"]) == (1.5, 2.0)
    assert metrics["time/group/score"] == 0.5


def test_staleness_by_group_and_by_token() -> None:
    def aged(*counts: tuple[int, list[int]]) -> GroupSummary:
        by_version = {WeightVersion(v, 0): np.array(n, np.int32) for v, n in counts}
        oldest = min(v for v, _ in counts)
        made = summary([0, 1], [10, 10], {}, oldest)
        return replace(made, tokens_by_version=by_version)

    metrics = step_metrics(7, [aged((5, [10, 2]), (7, [0, 8])), aged((7, [10, 10]))], {}, {}, 1.0)
    assert (metrics["staleness/mean"], metrics["staleness/max"]) == (1.0, 2.0)
    assert metrics["staleness/token_mean"] == pytest.approx(2 * 12 / 40)
    assert metrics["staleness/token_share/2"] == pytest.approx(12 / 40)
    assert metrics["staleness/token_share/0"] == pytest.approx(28 / 40)
    assert "staleness/token_share/1" not in metrics
    assert "staleness/too_old_share" not in metrics
    masked = replace(aged((7, [0, 8])), num_too_old=12)
    assert step_metrics(7, [masked], {}, {}, 1.0)["staleness/too_old_share"] == 12 / 20


def test_how_much_reference_scoring_hid_behind_generation() -> None:
    def timed(samples_at: float, reference: float, score: float) -> GroupSummary:
        timings = {"reference": reference, "score": score, "referenced_at": samples_at + reference}
        return replace(summary([1], [4], {}, 7), timings=timings)

    # The last samples are there at 110; then 2 s of rewards, then 1 s more for the reference alone
    groups = [timed(100, 4, 1), timed(108, 3, 1), timed(110, 3, 2)]
    metrics = step_metrics(7, groups, {}, {}, 1.0)
    assert metrics["reference/wait_seconds"] == pytest.approx(1.0)
    assert metrics["reference/overlap_share"] == pytest.approx((4 + 2 + 0) / 10)
    assert metrics["time/group/reference"] == pytest.approx(10 / 3)
    assert "time/group/referenced_at" not in metrics
    slow_reward = step_metrics(7, [timed(100, 4, 9)], {}, {}, 1.0)
    assert slow_reward["reference/wait_seconds"] == 0.0
    assert "reference/wait_seconds" not in step_metrics(7, [summary([1], [4], {}, 7)], {}, {}, 1.0)


def test_what_nothing_could_score_is_no_reward() -> None:
    broken = [
        summary([1, NAN, 1], [1, 1, 1], {"judge": [1, NAN, 1]}, 0),
        summary([NAN, NAN], [1, 1], {"judge": [NAN, NAN]}, 0),
    ]
    metrics = step_metrics(0, broken, {}, {}, 1.0)
    assert (metrics["reward/mean"], metrics["reward/std"]) == (1.0, 0.0)
    assert metrics["reward/unscored_share"] == pytest.approx(3 / 5)


def test_what_has_no_mean_is_left_out() -> None:
    given = [summary([0.5], [3], {"mean": [4.0], "judge": [NAN]}, oldest=None)]
    metrics = step_metrics(0, given, {}, {}, 0.0)
    absent = {"staleness/mean", "speed/tokens_per_second"}
    assert not absent & metrics.keys()
    assert "reward/judge" not in metrics and metrics["reward/judge/present"] == 0.0
    assert (metrics["reward/mean"], metrics["reward/mean_component"]) == (0.5, 4.0)


def test_the_weights_of_given_answers_are_no_reward() -> None:
    metrics = step_metrics(0, [summary([1.0], [3], {}, oldest=None)], {}, {}, 1.0)
    assert not any(name.startswith("reward") for name in metrics)


def test_a_step_without_groups_has_totals_only() -> None:
    metrics = step_metrics(3, [], {}, {}, 1.0)
    assert (metrics["samples"], metrics["tokens/completion"], metrics["groups"]) == (0, 0, 0)
    assert not any(name.startswith(("reward", "length", "staleness")) for name in metrics)


def test_what_engines_have_done_comes_back_from_the_metrics() -> None:
    work = EngineWork(3, 8, 22, 1.0, 2.5, 40, 0.125)
    metrics = engine_metrics(RowSeconds(2.0, 8.0, work))
    assert (metrics[IDLE_SHARE], metrics["engine/busy_row_seconds"]) == (0.75, 2.0)
    assert engine_work(metrics) == work
    assert engine_metrics(NOT_COUNTED) == {}
    silent = engine_metrics(RowSeconds(2.0, 8.0))
    assert silent.keys() == {IDLE_SHARE, "engine/busy_row_seconds"}
    assert engine_work(silent) == EngineWork()


def test_lines_survive_kill_and_resume(tmp_path: Path) -> None:
    directory, clock = RunDirectory(tmp_path), Clock()
    writer = MetricsWriter(directory, clock)
    clock.now += 2.5
    writer.log("rl", 1, {"reward/mean": 0.5, "learner/kl": NAN, "learner/ratio": math.inf})
    position = writer.position()
    clock.now += 1.0
    writer.log("rl", 2, {"reward/mean": 0.6})
    writer.event("worker_died", {"worker": 3, "loss": NAN, "seen": [1.5, math.inf]})
    assert len(read_metrics(directory.metrics)) == 2  # while the writer has it open
    writer.close()
    with directory.metrics.open("a") as file:
        file.write('{"stage": "rl", "st')

    later = Clock()
    later.now = 7000.0
    resumed = MetricsWriter(directory, later)
    assert resumed.seconds() == 3.5
    resumed.truncate(position)
    resumed.log("rl", 2, {"reward/mean": 0.7})
    resumed.close()
    first, second = read_metrics(directory.metrics)
    assert (first.stage, first.step, first.seconds) == ("rl", 1, 2.5)
    assert math.isnan(first.values["learner/kl"]) and math.isnan(first.values["learner/ratio"])
    assert second == MetricsLine("rl", 2, 3.5, {"reward/mean": 0.7})
    (event,) = [json.loads(line) for line in directory.events.read_text().splitlines()]
    assert event == {
        "seconds": 3.5,
        "name": "worker_died",
        "fields": {"worker": 3, "loss": None, "seen": [1.5, None]},
    }


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"stage": "rl", "step": 1, "seconds": 0.5}\n'
    for bad in ("{half\n", '{"step": 1}\n', "[]\n"):
        path.write_text(good + bad)
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is no"):
            read_metrics(path)


def test_companions_are_counted_apart() -> None:
    plain = summary([1, 0], [4, 8], {"correct": [1, 0]}, oldest=5)
    beside = replace(plain, companion=CompanionSummary("greedy", 0.5, 30, 40))
    other = replace(plain, companion=CompanionSummary("greedy", 1.0, 20, 30))
    found = step_metrics(5, [beside, other], {}, {}, 1.0)
    assert (found.pop("companion/reward"), found.pop("companion/length")) == (0.75, 25.0)
    assert found == step_metrics(5, [plain, plain], {}, {}, 1.0)
