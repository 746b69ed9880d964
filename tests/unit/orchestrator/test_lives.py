from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from manta.orchestrator import run_file
from manta.orchestrator.config import RunFile
from manta.orchestrator.lives import Lives, lineage
from manta.orchestrator.run_directory import RunDirectory
from tests.unit.orchestrator.test_run_file import TEXT


def lives_in(folder: Path) -> tuple[Lives, RunDirectory]:
    directory = RunDirectory(folder / "run")
    directory.create()
    return Lives(directory), directory


def loaded(folder: Path) -> RunFile:
    path = folder / "run.yaml"
    path.write_text(TEXT)
    return run_file.load(path, [])


def test_starts_are_counted_from_0(tmp_path: Path) -> None:
    lives, directory = lives_in(tmp_path)
    assert [lives.begin(step) for step in (0, 4, 4)] == [0, 1, 2]
    lines = [json.loads(line) for line in directory.incarnations.read_text().splitlines()]
    assert lines == [{"incarnation": i, "step": s} for i, s in enumerate((0, 4, 4))]


@pytest.mark.parametrize(
    ("starts", "last"),
    [
        ([0], {}),
        ([0, 4], {0: 4}),
        ([0, 8, 4], {0: 4, 1: 4}),
        ([0, 4, 8], {0: 4, 1: 8}),
        ([0, 4, 8, 6, 7], {0: 4, 1: 6, 2: 6, 3: 7}),
        ([0, 4, 0], {0: 0, 1: 0}),
    ],
)
def test_a_later_start_cuts_off_what_came_after_its_step(
    tmp_path: Path, starts: list[int], last: dict[int, int]
) -> None:
    lives, directory = lives_in(tmp_path)
    for step in starts:
        lives.begin(step)
    assert lineage(directory.incarnations) == last


def test_a_torn_line_is_no_start(tmp_path: Path) -> None:
    lives, directory = lives_in(tmp_path)
    lives.begin(0)
    with directory.incarnations.open("a") as file:
        file.write('{"incarnat')
    assert lineage(directory.incarnations) == {}
    assert lives.begin(2) == 1
    assert lineage(directory.incarnations) == {0: 2}


def test_a_run_of_another_configuration_is_refused_with_both_values_and_what_to_do(
    tmp_path: Path,
) -> None:
    lives, directory = lives_in(tmp_path)
    config = loaded(tmp_path)
    assert not lives.holds_a_run()
    assert lives.check(config) == []
    lives.save(config)
    assert lives.holds_a_run()
    assert lives.check(config) == []
    workers = replace(config, learner=replace(config.learner, workers=2))
    assert [str(each) for each in lives.check(workers)] == ["learner.workers: 1 -> 2"]
    other = replace(workers, run=replace(config.run, seed=5))
    with pytest.raises(ValueError) as refused:
        lives.check(other)
    assert str(refused.value) == (
        f"{directory.root} holds a run of another configuration (there -> here):\n"
        "  run.seed: 0 -> 5 (may not change)\n"
        "beside these, which may change:\n"
        "  learner.workers: 1 -> 2\n"
        "Set what may not change back to go on with that run (KEY=VALUE does, on the command "
        "line), or choose another run.name to begin a new one; docs/run-file.md lists the keys "
        "that may change"
    )


def test_finished_means_with_the_steps_that_are_asked_for(tmp_path: Path) -> None:
    lives, directory = lives_in(tmp_path)
    config = loaded(tmp_path)
    assert not lives.is_finished(config)
    lives.save(config)
    stages = [{"name": stage.name, "steps": stage.steps} for stage in config.stages]
    for state, finished in (("stopped", False), ("finished", True)):
        directory.summary.write_text(json.dumps({"state": state, "stages": stages}))
        assert lives.is_finished(config) is finished
    last = replace(config.stages[-1], steps=config.stages[-1].steps + 1)
    assert not lives.is_finished(replace(config, stages=(*config.stages[:-1], last)))
