"""A model of a few thousand parameters, with rows, groups and plans to train it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from manta.actors.models.causal import build_model
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.rows import Row, rows_of
from manta.envs.chat_template import POLICY
from manta.envs.records import (
    COMPANION,
    GIVEN,
    TOKEN_REWARDS,
    WRITTEN,
    Bool,
    Companion,
    CompanionKind,
    GroupId,
    Likeliest,
    ReferenceStatistics,
    Score,
    ScoredGroup,
    Task,
    Trajectory,
    Turn,
    VersionSpan,
    WeightVersion,
)
from manta.envs.step_records import StepPlan

VOCABULARY = 19
OLD, HELD = WeightVersion(3, 0), WeightVersion(4, 0)
"""Versions that the tokens of trajectories were sampled under; the learner holds the latter."""

torch.set_num_threads(1)  # more threads slow such small products down


def run_ranks(main: Callable[..., None], world_size: int, *arguments: object) -> None:
    """Runs `main(rank, world_size, *arguments)` in processes forked from one that has imported the
    slow packages, and waits for them."""
    get_context("forkserver").set_forkserver_preload(
        ["manta.actors.learning", "manta.actors.backends.plain", "transformers.models.qwen2"]
    )
    mp.start_processes(
        main, args=(world_size, *arguments), nprocs=world_size, start_method="forkserver"
    )


def join_group(rank: int, world_size: int, folder: Path) -> dist.ProcessGroup:
    """A gloo group over a file in `folder`, which no other group may have used."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def tiny_spec(tied: bool = True, **options: str) -> ModelSpec:
    sizes = BuildSpec(layers=2, width=16, heads=2, kv_heads=1, mlp_width=24, tie_embeddings=tied)
    return ModelSpec(build=sizes, context=64, **options)


def tiny_model(seed: int = 0, tied: bool = True, **options: str) -> nn.Module:
    model = build_model(tiny_spec(tied, **options), VOCABULARY, seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():  # initial weights are nearly uniform in their outputs
        parameter.data.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.1)
    return model


def library_model(architecture: str, **options: object) -> PreTrainedModel:
    """transformers' own model of that family, before anything of Manta's is in it."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **sizes, **options)
    return AutoModelForCausalLM.from_config(config).eval()


def trajectory(
    generator: np.random.Generator, sample: int, with_holes: bool, shortest: int = 6
) -> Trajectory:
    """Random tokens; with holes, the trained ones are two turns with untrained tokens between.

    Every third one was begun under older weights than it ended with.
    """
    length = int(generator.integers(shortest, 24))
    loss_mask = np.arange(length) >= int(generator.integers(1, shortest))
    if with_holes:
        loss_mask &= np.arange(length) % 5 != 3
    return Trajectory(
        task_id="task",
        sample=sample,
        model="policy",
        token_ids=generator.integers(0, VOCABULARY, length).astype(np.int32),
        loss_mask=loss_mask,
        logprobs=np.where(loss_mask, generator.normal(-3.0, 0.1, length), 0).astype(np.float32),
        weight_versions=(VersionSpan(0, HELD),)
        if sample % 3
        else (VersionSpan(0, OLD), VersionSpan(length // 2, HELD)),
        turns=(),
        finish_reason="stop",
        artifact="",
    )


def groups_of(
    sizes: Sequence[int],
    seed: int = 0,
    reference: bool = True,
    companion: CompanionKind = "none",
) -> list[ScoredGroup]:
    generator = np.random.default_rng(seed)
    groups = []
    for position, size in enumerate(sizes):
        members = tuple(trajectory(generator, i, with_holes=i % 2 == 1) for i in range(size))
        logprobs = tuple(
            np.where(t.loss_mask, generator.normal(-3.0, 0.1, len(t.token_ids)), 0).astype(
                np.float32
            )
            for t in members
        )
        groups.append(
            ScoredGroup(
                id=GroupId(0, position, 0),
                task=Task(f"task-{position}", "prompt", None, "tiny"),
                trajectories=members,
                scores=tuple(Score(float(generator.normal()), {}) for _ in members),
                reference=ReferenceStatistics("0", logprobs) if reference else None,
                reward_versions={},
                timings={},
            )
        )
    if companion == "none":
        return groups
    return [replace(each, companion=companion_of(generator, companion)) for each in groups]


def companion_of(generator: np.random.Generator, kind: CompanionKind) -> Companion:
    made = trajectory(generator, COMPANION, with_holes=kind == "written")
    if kind == "greedy":
        return Companion(made, Score(float(generator.normal()), {}))
    model = GIVEN if kind == "given" else WRITTEN
    made = replace(made, model=model, logprobs=None, weight_versions=())
    score, reference = Score(float(generator.normal()), {}), None
    if kind == "written":
        noise = generator.normal(-3.0, 0.1, len(made.token_ids))
        reference = np.where(made.loss_mask, noise, 0).astype(np.float32)
    return Companion(made, score, reference)


def paid_within(groups: Sequence[ScoredGroup], seed: int = 0) -> list[ScoredGroup]:
    """`groups` whose trajectories have the turns that their loss masks show, and rewards within,
    also where no token trains."""
    generator = np.random.default_rng(seed)
    paid = []
    for group in groups:
        members = tuple(replace(t, turns=_turns(t.loss_mask)) for t in group.trajectories)
        columns = [generator.normal(size=len(t.token_ids)).astype(np.float32) for t in members]
        scores = tuple(
            replace(score, columns={TOKEN_REWARDS: column})
            for score, column in zip(group.scores, columns, strict=True)
        )
        paid.append(replace(group, trajectories=members, scores=scores))
    return paid


def taught(groups: Sequence[ScoredGroup], k: int = 4, seed: int = 0) -> list[ScoredGroup]:
    """`groups` whose reference says of random distributions which k tokens are likeliest, with
    weights between 1 and 2."""
    generator = np.random.default_rng(seed)
    return [
        replace(group, reference=replace(group.reference, likeliest=likeliest))
        for group in groups
        if group.reference is not None
        for likeliest in [
            tuple(likeliest_of(generator, int(t.loss_mask.sum()), k) for t in group.trajectories)
        ]
    ]


def likeliest_of(generator: np.random.Generator, num_tokens: int, k: int) -> Likeliest:
    p_TV = generator.dirichlet(np.full(VOCABULARY, 0.5), num_tokens)
    ids_TK = np.argsort(-p_TV, axis=1)[:, :k]
    own_TK = np.take_along_axis(p_TV, ids_TK, axis=1)
    rest_T1 = np.maximum(1 - own_TK.sum(axis=1, keepdims=True), 1e-30)
    logprobs_TK1 = np.log(np.concatenate([own_TK, rest_T1], axis=1)).astype(np.float32)
    weights_T = generator.uniform(1, 2, num_tokens).astype(np.float32)
    return Likeliest(ids_TK.astype(np.int32), logprobs_TK1, weights_T)


def _turns(loss_mask: Bool) -> tuple[Turn, ...]:
    borders = np.flatnonzero(np.diff(loss_mask, prepend=False, append=False)).tolist()
    return tuple(
        Turn(POLICY, start, end) for start, end in zip(borders[::2], borders[1::2], strict=True)
    )


def plan_of(groups: Sequence[ScoredGroup], keep: Sequence[float] | None = None) -> StepPlan:
    """Every row a unit of its own; the advantage is the score."""
    members = [
        (g, s if s < len(group.trajectories) else COMPANION)
        for g, group in enumerate(groups)
        for s in range(len(group.rows))
    ]
    chosen = [groups[g].row(s) for g, s in members]
    return StepPlan(
        step=0,
        groups=tuple(group.id for group in groups),
        group_N=np.array([g for g, _ in members], np.int32),
        sample_N=np.array([s for _, s in members], np.int32),
        unit_N=np.arange(len(members), dtype=np.int32),
        coefficients={
            "advantage": np.array([groups[g].row_scores[s].value for g, s in members], np.float32),
            "weight": np.ones(len(members), np.float32),
            "keep": np.array(keep if keep is not None else [1.0] * len(members), np.float32),
        },
        lengths_N=np.array([len(t.token_ids) for t in chosen], np.int32),
        num_tokens_N=np.array([t.loss_mask.sum() for t in chosen], np.int32),
    )


def rows_by_index(plan: StepPlan, groups: Sequence[ScoredGroup]) -> dict[int, Row]:
    by_id = {group.id: group for group in groups}
    return {row.index: row for row in rows_of(plan, by_id, range(len(plan.group_N)), HELD)}


def tiny_rows(sizes: Sequence[int] = (4, 3), seed: int = 0) -> list[Row]:
    groups = groups_of(sizes, seed)
    return list(rows_by_index(plan_of(groups), groups).values())
