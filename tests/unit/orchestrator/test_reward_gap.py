"""How far what trains is from what it stands for, by hand."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from manta.actors.scoring_queue import QueueFigures
from manta.orchestrator.metrics import MetricsLine
from manta.orchestrator.reward_gap import agreement, reward_gap
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.scorer_watch import scorer_metrics
from manta.orchestrator.summary import summarise_run, summary_table
from tests.unit.orchestrator.test_metrics import summary
from tests.unit.orchestrator.test_summary import DRIVER, step

NAN = math.nan


def test_pairs_that_both_order_alike() -> None:
    # Of the first group's pairs 0-1 is ordered alike, 2-1 the other way round, 0-3 and 2-3 do not
    # count (no gold); the second's 0-1 is a draw by proxy; the third is all alike by gold.
    summaries = [
        summary([3, 2, 1, 9], [1] * 4, {"gold": [1, 0, 1, NAN]}, 0),
        summary([5, 5], [1] * 2, {"gold": [0.2, 0.1]}, 0),
        summary([1, 2], [1] * 2, {"gold": [1, 1]}, 0),
        summary([1, 2], [1] * 2, {"other": [1, 1]}, 0),
    ]
    found = agreement(summaries, "gold")
    assert found == {"reward/agreement": 1.5 / 3, "reward/agreement/pairs": 3.0}
    assert agreement(summaries[2:], "gold") == {}


def figures(proxy: float, gold: float, std: float = 0.5) -> dict[str, float]:
    return {
        "eval/accuracy": gold, "eval/reward": proxy, "eval/reward_std": 2.0,
        "eval/gold_reward": gold, "eval/gold_std": std,
    }  # fmt: skip


def test_the_gap_is_in_standard_deviations_before_the_stage() -> None:
    gap = reward_gap(figures(1.0, 0.4), figures(4.0, 0.6, std=9.0))
    assert gap is not None
    assert (gap.proxy_before, gap.proxy_after, gap.gold_before, gap.gold_after) == (1, 4, 0.4, 0.6)
    assert gap.gap == pytest.approx(3.0 / 2 - 0.2 / 0.5)
    flat = reward_gap(figures(1.0, 0.4, std=0.0), figures(4.0, 0.6))
    assert flat is not None and flat.gap is None
    assert reward_gap({"eval/accuracy": 0.1, "eval/reward": 0.1}, figures(1.0, 0.4)) is None


def test_a_run_says_what_both_came_to(tmp_path: Path) -> None:
    lines = [
        step("warm", 1, 1.0),
        MetricsLine("rl", 1, 2.0, figures(1.0, 0.4)),
        step("rl", 2, 3.0),
        MetricsLine("rl", 2, 4.0, figures(2.0, 0.5)),
        step("rl", 3, 5.0),
        MetricsLine("rl", 3, 6.0, figures(4.0, 0.6)),
    ]
    found = summarise_run(RunDirectory(tmp_path), lines, DRIVER, "finished")
    warm, rl = found.stages
    assert warm.rewards is None and rl.rewards is not None
    assert (rl.rewards.proxy_before, rl.rewards.gold_after) == (1.0, 0.6)
    out = io.StringIO()
    Console(file=out, width=200).print(summary_table(found))
    assert (
        "rewards of rl: proxy 1.000 to 4.000, gold 0.400 to 0.600; the proxy gained +1.10 standard "
        "deviations more than gold"
    ) in out.getvalue()


def test_figures_of_scorers() -> None:
    metrics = scorer_metrics({"judge": QueueFigures(7, 3, (0.1, 0.4, 0.2)), "new": EMPTY})
    assert metrics["scorer/judge/seconds_p50"] == 0.2
    assert metrics["scorer/judge/seconds_max"] == 0.4
    assert (metrics["scorer/judge/calls"], metrics["scorer/judge/queue"]) == (7.0, 3.0)
    assert {name for name in metrics if "/new/" in name} == {"scorer/new/calls", "scorer/new/queue"}


EMPTY = QueueFigures(0, 0, ())
