"""Names of weights and data: how they are written, and which stage they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.model_names import (
    EmaName,
    InitialName,
    PathName,
    SoupName,
    StageName,
    StepName,
    meant,
    named_stage,
    parse,
    parse_mixed,
    parse_stage,
    policy_before,
    steps_named,
)
from tests.unit.orchestrator.tiny_run import TINY, load

NAMES = [
    ("stage:rl", StageName("rl")),
    (" stage:rl@12 ", StageName("rl", 12)),
    ("step:40", StepName(40)),
    ("initial", InitialName()),
    ("./initial", PathName("./initial")),
    ("Qwen/Qwen3-1.7B", PathName("Qwen/Qwen3-1.7B")),
    ("soup(stage:a, step:3)", SoupName((StageName("a"), StepName(3)))),
    ("soup( a/b ,initial)", SoupName((PathName("a/b"), InitialName()))),
    ("ema(0.99)", EmaName(0.99)),
]


@pytest.mark.parametrize(("text", "name"), NAMES)
def test_names_are_read_and_said_back(text: str, name: object) -> None:
    found = parse(text)
    assert found == name
    assert parse(str(found)) == name


WRONG = [
    ("stages:rl", "there is no 'stages:'; did you mean 'stage:'?"),
    ("stpe:4", "there is no 'stpe:'; did you mean 'step:'?"),
    ("file:x", "there is no 'file:'; write stage:NAME, step:N"),
    ("stage:", "'' is no name of a stage"),
    ("stage:rl@0", "'rl@0' is no name of a stage: write stage:NAME, or stage:NAME@K for the K-th"),
    ("step:x", "what follows step: is the number of a step"),
    ("step:0", "what follows step: is the number of a step, from 1 on"),
    ("sup(a, b)", "there is no 'sup(...)'; did you mean 'soup'?"),
    ("soup(a)", "a soup is made of two names at least"),
    ("soup(a,, b)", "a soup is made of two names at least"),
    ("soup(a, soup(b, c))", "a soup is made of plain names"),
    ("soup(a, b", "'soup(a, b' names no weights"),
    ("soup(a, stag:b)", "did you mean 'stage:'?"),
    ("ema(1.5)", "a decay lies between 0 and 1"),
    ("ema(policy)", "a decay lies between 0 and 1"),
    ("", "'' names no weights"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_what_is_no_name_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert told in str(caught.value)


def test_a_moving_average_stands_still_nowhere() -> None:
    with pytest.raises(ValueError, match="can only be the reference"):
        parse_mixed("ema(0.9)")
    with pytest.raises(ValueError, match="names no stage"):
        parse_stage("step:4")


def test_of_a_repeated_stage_the_newest_is_meant() -> None:
    stages = ["sft", "rl@1", "rl@2", "rlhf"]
    assert meant(stages, StageName("rl")) == "rl@2"
    assert meant(stages, StageName("rl", 1)) == "rl@1"
    assert meant(stages, StageName("rl", 3)) is None
    assert meant(stages, StageName("sft")) == "sft"


REPEATED = TINY.replace(
    "stages:\n",
    "stages:\n  - {name: base, algorithm: sft, steps: 1}\n",
).replace("  - name: rl\n", "  - name: rl\n    repeat: 2\n")


def test_a_name_means_a_stage_that_stands_before(tmp_path: Path) -> None:
    run_file = load(tmp_path, text=REPEATED)
    base, warm, first, second = run_file.stages
    assert [stage.name for stage in run_file.stages] == ["base", "warm", "rl@1", "rl@2"]
    assert named_stage(run_file, StageName("rl"), second) == first
    assert named_stage(run_file, StageName("base"), warm) == base
    assert policy_before(run_file, base) == InitialName()
    assert policy_before(run_file, second) == StageName("rl", 1)
    for name, reader, told in (
        (StageName("rl"), warm, "comes later"),
        (StageName("rl", 2), first, "this very stage"),
        (StageName("warn"), first, "did you mean 'warm'"),
        (StageName("x"), base, "it is the first"),
    ):
        with pytest.raises(ValueError, match=told):
            named_stage(run_file, name, reader)


def test_the_steps_that_are_named_are_known(tmp_path: Path) -> None:
    run_file = load(
        tmp_path,
        "stages.rl.start_from=soup(step:2, step:3)",
        "stages.rl.algorithm.kl.coef=0.1",
        "reference.model=step:1",
    )
    assert steps_named(run_file) == {1, 2, 3}
