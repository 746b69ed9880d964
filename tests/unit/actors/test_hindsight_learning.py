"""From samples under the good tag to the learner's step: its loss, and the movement that it makes,
against loops over rows that are put together by hand, in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.lanes import Admission, Lane
from manta.actors.learning import Learner
from manta.actors.models.causal import build_model
from manta.actors.production import RelabelledGroups, SampledGroups, build_production
from manta.actors.rows import rows_of
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.families.arithmetic import Arithmetic
from manta.envs.group import Scoring
from manta.envs.hindsight import Hindsight
from manta.envs.records import (
    Completion,
    GenerateRequest,
    GroupId,
    Json,
    ScoredGroup,
    Task,
    WeightVersion,
)
from manta.envs.summaries import summarise
from manta.envs.tokenizer import ByteTokenizer
from manta.envs.trajectory_files import write_groups
from manta.orchestrator.assemble import assemble
from tests.tiny import tiny_spec
from tests.unit.envs.scripted import ScriptedEngine
from tests.unit.envs.test_hindsight import by_answer

BYTES = ByteTokenizer()
INDICES = (7, 61, 14)
TAGS = ("bad ", "good ")
LANE = Lane(
    name="learn",
    env="arithmetic",
    env_options={"digits": 1, "eval_size": 20, "last_word": True},
    split="train",
    samples_from="policy",
    samples_per_prompt=3,
    seed=0,
    context=64,
    max_new_tokens=4,
    tag=TAGS[1],
    hindsight=Hindsight(TAGS, (0.5,), True),
)
WEIGHTED = replace(PRESETS["leti"], reward_temperature=0.8, samples_per_prompt=3)
PLAIN = replace(PRESETS["leti"], samples_per_prompt=3)
LEARNER = LearnerSettings(optimizer="sgd", clip_norm=0.0, weight_decay=0.0)


def answers(task: Task) -> tuple[str, str, str]:
    return ("x", "1", str(task.reference))


async def sample(index: int, lane: Lane) -> ScoredGroup:
    """Three samples, of which the last is right."""
    texts = answers(Arithmetic(digits=1, eval_size=20).source("train").task(index))
    engine = ScriptedEngine(BYTES, lambda call, _: texts[call])
    made = build_production(lane, "byte", engine.generate, Scoring(by_answer))
    return await made.make(Admission(GroupId(0, index, 0), index))


async def sampled() -> list[ScoredGroup]:
    return [await sample(index, LANE) for index in INDICES]


def policy() -> nn.Module:
    model = build_model(tiny_spec(), BYTES.vocab_size, 0)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model.double()


def told(task: Task, text: str) -> tuple[list[int], list[int]]:
    """The tokens of the prompt and of what trains after it, as LeTI builds a row."""
    is_right = text == str(task.reference)
    feedback = b"" if is_right else b"\nuser: no\n"
    prompt = f"{TAGS[is_right]}{task.prompt}"
    return list(prompt.encode()), [*text.encode(), BYTES.eos_id, *feedback]


def by_loop(model: nn.Module, groups: list[ScoredGroup], temperature: float | None) -> Tensor:
    """The weighted mean of the tokens' negative log-likelihoods."""
    top, bottom = torch.zeros((), dtype=torch.float64), 0.0
    for group in groups:
        for text in answers(group.task):
            reward = float(text == str(group.task.reference))
            weight = 1.0 if temperature is None else math.exp(reward / temperature)
            prompt, said = told(group.task, text)
            logits = model(torch.tensor([[*prompt, *said]])).logits[0].double()
            for at, token in enumerate(said, start=len(prompt)):
                top = top - weight * torch.log_softmax(logits[at - 1], -1)[token]
                bottom += weight
    return top / bottom


async def test_rows_are_those_that_are_built_by_hand() -> None:
    for group in await sampled():
        for row, text in zip(group.trajectories, answers(group.task), strict=True):
            prompt, said = told(group.task, text)
            assert row.token_ids.tolist() == [*prompt, *said]
            assert row.loss_mask.tolist() == [False] * len(prompt) + [True] * len(said)


@pytest.mark.parametrize("algorithm", [PLAIN, WEIGHTED], ids=["leti", "weighted"])
@pytest.mark.parametrize("budget", [1, 8192])
async def test_loss_and_gradient_are_those_of_the_loop(
    algorithm: AlgorithmSettings, budget: int
) -> None:
    groups, reference = await sampled(), policy()
    loss = by_loop(reference, groups, algorithm.reward_temperature)
    loss.backward()
    model = policy()
    learner = Learner(PlainBackend(model, LEARNER), algorithm, budget)
    plan = assemble(1, [summarise(group) for group in groups], algorithm)
    by_id = {group.id: group for group in groups}
    rows = {row.index: row for row in rows_of(plan, by_id, range(9), WeightVersion(0, 0))}
    report = learner.step(plan, rows, 1, 1, 1.0)
    # Weights travel as float32
    assert report["loss"] == pytest.approx(loss.item(), rel=1e-6)
    lengths = [len(told(g.task, text)[1]) for g in groups for text in answers(g.task)]
    assert report["tokens"] == sum(lengths)
    moved = _flat(reference.parameters()) - _flat(model.parameters())
    wanted = _flat(each.grad for each in reference.parameters() if each.grad is not None)
    # Statistics of the vocabulary are float32
    assert float((moved - wanted).norm() / wanted.norm()) < 1e-6
    # Held against the engine is what was sampled under the tag that it has, and heard nothing
    kinds = ("same_version", "stale")
    assert sum(report.get(f"mismatch/{kind}/tokens", 0) for kind in kinds) == sum(lengths[2::3])


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([each.detach().flatten() for each in tensors])


async def test_given_answers_of_two_classes_are_learnt_under_their_tags(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(4)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    options: dict[str, Json] = {"train": str(file), "eval_size": 1}
    lane = replace(
        LANE, env="preferences", env_options=options, samples_from="given", compares=True
    )
    made = build_production(lane, "byte", _silent, Scoring(by_answer))
    group = await made.make(Admission(GroupId(0, 0, 0), 1))
    asked = group.task.prompt
    assert [(bytes(t.token_ids[:-1].tolist()).decode()) for t in group.trajectories] == [
        f"good {asked}yes",
        f"bad {asked}no",
    ]
    assert [s.value for s in group.scores] == [1.0, 0.0]


async def test_what_was_written_as_sampled_trains_as_if_it_were_fresh(tmp_path: Path) -> None:
    raw = [await sample(index, replace(LANE, hindsight=None)) for index in INDICES]
    write_groups(str(tmp_path / "step=1" / "written.parquet"), raw, 1)
    lane = replace(LANE, samples_from="written", trajectories=str(tmp_path), tag="")
    made = build_production(lane, "byte", _silent, Scoring(by_answer))
    assert made.num_tasks == len(raw)
    for place, group in enumerate(await sampled()):
        again = await made.make(Admission(group.id, place))
        assert again.content_hash() == group.content_hash() != raw[place].content_hash()


async def _silent(requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
    raise AssertionError("no engine is asked")


async def test_without_the_settings_nothing_is_relabelled() -> None:
    plain = replace(LANE, tag="", hindsight=None)
    engine = ScriptedEngine(BYTES, lambda call, sample: "x")
    made = build_production(plain, "byte", engine.generate, Scoring(by_answer))
    assert isinstance(made, SampledGroups) and made.relabeller is None
    tagged = build_production(LANE, "byte", engine.generate, Scoring(by_answer))
    assert isinstance(tagged, RelabelledGroups) and tagged.num_tasks == made.num_tasks
