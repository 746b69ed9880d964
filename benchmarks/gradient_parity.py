"""That both sides of a comparison do the same work: one step's loss and gradient, by either.

TRL samples a batch, scores it and computes its own loss on it. Manta gets the same completions and
the same reward rule, makes its own plan of them and takes its own update. No step is timed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.grpo_work import STD_EPSILON, GrpoWork
from benchmarks.pinned_lengths import PROMPT_TOKENS, VOCABULARY, even_share
from benchmarks.trl_side import build_trainer
from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.learning import Learner
from manta.actors.models.causal import build_model
from manta.actors.models.policy import token_logprobs
from manta.actors.models.spec import ModelSpec
from manta.actors.rows import rows_of
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import GroupId, Score, ScoredGroup, Task, Trajectory, Turn
from manta.envs.summaries import summarise
from manta.orchestrator.assemble import assemble

TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Parity:
    """`gradient`: |ours - TRL's| over all parameters, relative to TRL's norm; `loss`: absolute;
    `norm`: TRL's gradient norm, so that equal zeros are seen for what they are."""

    gradient: float
    loss: float
    norm: float


def gradient_parity(model_folder: Path, output: Path, work: GrpoWork) -> Parity:
    """Compares the two on the first step of `work`.

    Raises RuntimeError where the gradients differ by more than TOLERANCE.
    """
    trainer = build_trainer(model_folder, output, work)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs(batch)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    theirs = {name: p.grad for name, p in trainer.model.named_parameters()}
    ours, our_loss = _manta_gradient(model_folder, _rows(inputs, work), work)
    if theirs.keys() != ours.keys():
        raise RuntimeError(f"other parameters: {sorted(theirs.keys() ^ ours.keys())[:4]}")
    apart = _norm([ours[name] - theirs[name] for name in theirs])
    norm = _norm(list(theirs.values()))
    parity = Parity(apart / norm, abs(our_loss - float(loss.detach())), norm)
    if not parity.gradient <= TOLERANCE:
        raise RuntimeError(f"the two sides do not do the same work: {parity}")
    return parity


def _rows(inputs: dict[str, Tensor], work: GrpoWork) -> list[ScoredGroup]:
    """TRL's completions as Manta's groups. TRL shuffles the rows of a batch: a group is known again
    by its prompt."""
    groups: dict[bytes, list[tuple[np.ndarray, np.ndarray]]] = {}
    for prompt, tokens, mask in zip(
        inputs["prompt_ids"], inputs["completion_ids"], inputs["completion_mask"], strict=True
    ):
        row = (prompt.numpy().astype(np.int32), tokens[mask.bool()].numpy().astype(np.int32))
        groups.setdefault(row[0].tobytes(), []).append(row)
    if [len(rows) for rows in groups.values()] != [work.samples] * work.prompts:
        raise RuntimeError("TRL's batch does not hold whole groups")
    return [_group(index, rows) for index, rows in enumerate(groups.values())]


def _group(index: int, rows: list[tuple[np.ndarray, np.ndarray]]) -> ScoredGroup:
    trajectories = tuple(
        Trajectory(
            task_id=f"parity/{index}",
            sample=sample,
            model="policy",
            token_ids=np.concatenate([prompt, tokens]),
            loss_mask=np.arange(len(prompt) + len(tokens)) >= len(prompt),
            logprobs=None,
            weight_versions=(),
            turns=(Turn("assistant", len(prompt), len(prompt) + len(tokens)),),
            finish_reason="length",
            artifact="",
        )
        for sample, (prompt, tokens) in enumerate(rows)
    )
    scores = tuple(Score(even_share(tokens.tolist()), {}) for _, tokens in rows)
    task = Task(id=f"parity/{index}", prompt="", reference=None, env="parity")
    return ScoredGroup(GroupId(0, index, 0), task, trajectories, scores, None, {}, {})


def _manta_gradient(
    model_folder: Path, groups: list[ScoredGroup], work: GrpoWork
) -> tuple[dict[str, Tensor], float]:
    """By parameter name, and the loss; the behaviour policy is the model itself."""
    spec = ModelSpec(path=str(model_folder), context=work.cap + PROMPT_TOKENS)
    model = build_model(spec, VOCABULARY, work.seed)
    algorithm = AlgorithmSettings(
        name="grpo",
        samples_per_prompt=work.samples,
        std_epsilon=STD_EPSILON,
        clip_low=work.clip,
        clip_high=work.clip,
        aggregation="sequence_mean",
    )
    groups = [_with_logprobs(group, model) for group in groups]
    plan = assemble(1, [summarise(group) for group in groups], algorithm)
    rows = rows_of(plan, {group.id: group for group in groups}, range(len(plan.group_N)))
    # No clipping: the gradient is read off the parameters after the update.
    settings = LearnerSettings(optimizer="sgd", clip_norm=0.0)
    learner = Learner(PlainBackend(model, settings), algorithm, settings.tokens_per_micro_batch)
    metrics = learner.step(plan, {row.index: row for row in rows}, 1, 1, learning_rate=0.0)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, metrics["loss"]


def _with_logprobs(group: ScoredGroup, model: torch.nn.Module) -> ScoredGroup:
    logprobs = token_logprobs(model, [t.token_ids for t in group.trajectories])
    trajectories = tuple(
        replace(trajectory, logprobs=found)
        for trajectory, found in zip(group.trajectories, logprobs, strict=True)
    )
    return replace(group, trajectories=trajectories)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in tensors]).norm())
