"""A small run file that loads and fits together; tests change one thing in it."""

from __future__ import annotations

from pathlib import Path

from manta.orchestrator import run_file
from manta.orchestrator.config import RunFile

TINY = """\
run: {name: tiny}
model:
  build: {layers: 1, width: 8, heads: 2, mlp_width: 16}
  tokenizer: "char:0123456789+="
  context: 24
env: {name: arithmetic, digits: 1, eval_size: 20}
reward: {formula: correct, components: {correct: exact}}
evaluate: {every_steps: 5, prompts: 10}
stages:
  - {name: warm, algorithm: sft, steps: 3, prompts_per_step: 4}
  - name: rl
    algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0.0}}
    steps: 5
    prompts_per_step: 8
rollout: {max_new_tokens: 4, max_rows: 16}
learner: {tokens_per_micro_batch: 128}
"""


def write(folder: Path, text: str = TINY) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def load(folder: Path, *overrides: str, text: str = TINY) -> RunFile:
    return run_file.load(write(folder, text), overrides)
