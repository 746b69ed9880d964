"""The TRL side of a comparison: GRPOTrainer on the pinned table, a line of JSON after every step.

    python -m benchmarks.trl_side MODEL_FOLDER LINES_FILE WORK

TRL gets the settings that serve it best here: no gradient checkpointing, one batch a step, padding
to the longest sample of the batch only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from benchmarks.grpo_work import GrpoWork
from benchmarks.pinned_lengths import even_share


class PinnedEnds(LogitsProcessor):  # type: ignore[misc]
    """Bans the end token until row i has `lengths[i]` - 1 new tokens, and forces it then."""

    def __init__(self, lengths: list[int], prompt_tokens: int, end: int) -> None:
        self._prompt_tokens, self._end = prompt_tokens, end
        self._rows_by_length: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            self._rows_by_length.setdefault(length, []).append(row)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self._end] = -torch.inf
        rows = self._rows_by_length.get(input_ids.shape[1] - self._prompt_tokens + 1)
        if rows is not None:
            scores[rows] = -torch.inf
            scores[rows, self._end] = 0.0
        return scores


class PinnedQwen2(Qwen2ForCausalLM):  # type: ignore[misc]
    """A qwen2 whose n-th call of `generate` makes samples of the lengths `plan[n]`."""

    plan: list[list[int]]
    calls: int = 0

    def generate(self, *args: object, **kwargs: Any) -> Tensor:
        prompt_tokens = kwargs["input_ids"].shape[1]
        end = kwargs["generation_config"].eos_token_id
        [end] = end if isinstance(end, list) else [end]
        ends = PinnedEnds(self.plan[self.calls], prompt_tokens, end)
        self.calls += 1
        made: Tensor = super().generate(
            *args, **kwargs, logits_processor=LogitsProcessorList([ends])
        )
        return made


class StepLines(TrainerCallback):  # type: ignore[misc]
    """Writes `{"step", "seconds"}` after each step; seconds of a clock of its own."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._start = time.perf_counter()

    def on_step_end(self, args: object, state: Any, control: object, **kwargs: object) -> None:
        line = {"step": state.global_step, "seconds": time.perf_counter() - self._start}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def pinned_reward(plan: list[list[int]]) -> Callable[..., list[float]]:
    """The reward `even_share`; its n-th call raises RuntimeError unless lengths are `plan[n]`."""
    expected = iter(plan)

    def even_shares(completion_ids: list[list[int]], **kwargs: object) -> list[float]:
        found, wanted = [len(token_ids) for token_ids in completion_ids], next(expected)
        if found != wanted:
            raise RuntimeError(f"TRL made lengths {found}, asked for {wanted}")
        return [even_share(token_ids) for token_ids in completion_ids]

    return even_shares


def build_trainer(model_folder: Path, output: Path, work: GrpoWork) -> GRPOTrainer:
    """A trainer that makes the steps of `work`; nothing but the loss goes to its logs."""
    table, steps = work.table(), work.tasks_by_step()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    model = PinnedQwen2.from_pretrained(model_folder, dtype=torch.float32)
    model.plan = [table.lengths[tasks].reshape(-1).tolist() for tasks in steps]
    prompts = [table.text(task) for tasks in steps for task in tasks]
    settings = GRPOConfig(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=work.prompts * work.samples,
        gradient_accumulation_steps=1,
        max_steps=work.steps,
        num_generations=work.samples,
        max_completion_length=work.cap,
        shuffle_dataset=False,
        temperature=1.0,
        beta=0.0,
        epsilon=work.clip,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=work.betas[0],
        adam_beta2=work.betas[1],
        weight_decay=0.0,
        max_grad_norm=work.clip_norm,
        seed=work.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=pinned_reward(model.plan),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )


def main() -> None:
    model_folder, lines, work = Path(sys.argv[1]), Path(sys.argv[2]), GrpoWork.read(sys.argv[3])
    torch.set_num_threads(work.threads)
    trainer = build_trainer(model_folder, lines.parent / "trl", work)
    trainer.add_callback(StepLines(lines))
    trainer.train()


if __name__ == "__main__":
    main()
