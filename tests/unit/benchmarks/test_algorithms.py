"""What the comparison of presets runs, and reads of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks import algorithms, algorithms_runs
from manta.orchestrator import run_file, survey
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.metrics import MetricsLine


def test_every_preset_is_in_a_run_that_can_start(tmp_path: Path) -> None:
    names = algorithms_runs.presets()
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(algorithms_runs.run_file("all", tmp_path, 1, 5, names)))
    loaded = run_file.load(str(path))
    assert cross_check(loaded, survey.look(loaded)) == []
    before = {algorithms_runs.WARM, algorithms_runs.TEACHER["name"]}
    of_presets = [s for s in loaded.stages if s.kind == "train" and s.name not in before]
    assert [stage.algorithm.name for stage in of_presets if stage.algorithm] == names
    for stage in of_presets:
        assert stage.algorithm is not None
        samples = stage.prompts_per_step * stage.algorithm.samples_per_prompt
        assert samples == algorithms_runs.SAMPLES_PER_STEP
        assert stage.start_from == "stage:warm-start"


def test_a_stage_is_read_from_its_evaluations_and_its_last_tenth() -> None:
    def line(step: int, stage: str = "grpo", **values: float) -> MetricsLine:
        named = {name.replace("__", "/"): value for name, value in values.items()}
        return MetricsLine(stage, step, float(step), named)

    dropped = {"groups__filtered_share": 0.5}
    steps = [
        line(
            i, time__step=2.0, learner__entropy=float(i), samples=8.0, pass_at__1=i / 20, **dropped
        )
        for i in range(1, 21)
    ]
    exam = line(20, "grpo-exam", eval__accuracy=0.375, eval__pass_at__8=0.875)
    lines = [line(0, eval__accuracy=0.25), *steps, line(20, eval__accuracy=0.5), exam]
    learnt = algorithms.learnt("grpo", lines)
    assert (learnt.gain, learnt.seconds, learnt.entropy) == (0.25, 40.0, pytest.approx(19.5))
    assert learnt.samples_needed == 7 * 16, "steps 3 to 7 are 0.1 above steps 1 to 5"
    assert learnt.pass_at_8 == 0.875
    assert learnt.length != learnt.length, "not measured is not a number"
    made = {figure.name: figure for figure in algorithms.figures({"grpo": [learnt]})}
    assert made["grpo: least gain"].holds()
    assert (made["grpo: length"].value, made["grpo: length"].samples) == (None, [None])
    shown = algorithms.markdown({"grpo": [learnt, learnt], "ppo": [replace(learnt, after=0.75)]})
    assert [line.split(" | ")[:6] for line in shown.splitlines()[2:]] == [
        ["| `ppo`", "75.0%", "+50.0 to +50.0", "87.5%", "19.50", ""],
        ["| `grpo`", "50.0%", "+25.0 to +25.0", "87.5%", "19.50", ""],
    ], "the best one first, and nothing where nothing was measured"
