"""A look at everything a run will meet, before anything starts: tokenizer, environments, prompts.

Owns building them for a check and measuring prompts and given answers. What is wrong is collected
under the key of the run file that it belongs to. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from uuid import uuid4

from manta.actors.transports.disk import open_folder
from manta.envs.protocols import Compares, Env, TaskSource, Tokenizer
from manta.envs.records import Task
from manta.envs.registry import build
from manta.envs.render import Renderer
from manta.envs.tokenizer import build_tokenizer
from manta.orchestrator.config import EnvConfig, RunFile, StageConfig

ALL_MEASURED = 20_000
"""Data sets up to this size are measured whole, larger ones by a sample."""
SAMPLE = 2_000
SHOWN_ROWS = 3
"""Broken rows of a data set told one by one; the rest is counted out."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of a stage over both splits, in tokens.

    `longest_answer` is that of the given answers with their end token, 0 where none were measured.
    """

    num_train: int
    num_eval: int
    num_measured: int
    longest: int
    longest_id: str
    mean: float
    longest_answer: int


@dataclass(frozen=True, slots=True)
class Survey:
    """`vocab_size` is None where there is no tokenizer; `prompts` holds what could be measured, by
    stage name; `problems` starts each line with the key it belongs to."""

    vocab_size: int | None
    prompts: Mapping[str, Prompts]
    problems: tuple[str, ...]


def look(run_file: RunFile) -> Survey:
    """The survey of `run_file`. Stages with equal environments are measured once."""
    problems: list[str] = []
    tokenizer = _tokenizer(run_file, problems)
    prompts: dict[str, Prompts] = {}
    known: list[tuple[tuple[EnvConfig, _Need, tuple[str, ...]], Prompts | None]] = []
    for index, stage in enumerate(run_file.stages):
        if stage.env is None or tokenizer is None:
            continue
        key = (stage.env, _Need.of(stage), _tags(stage))
        found = [measured for other, measured in known if other == key]
        if not found:
            renderers = [Renderer(tokenizer, tag=tag) for tag in key[2]]
            walk = _Walk(f"stages[{index}].env", run_file.model.context, renderers)
            found = [walk.measure(*key[:2])]
            problems += walk.problems
            known.append((key, found[0]))
        if found[0] is not None:
            prompts[stage.name] = found[0]
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    return Survey(vocab_size, prompts, tuple(problems))


def unreachable(key: str, path: str) -> Iterator[str]:
    """What keeps a run from using `path` (a folder or a URI, named by `key`), seen from here: a
    small file is written, read and removed. Missing folders are made."""
    root = path if "://" in path else str(Path(path).absolute())
    content = b"manta"
    try:
        files, folder = open_folder(root)
        files.create_dir(folder, recursive=True)
        trial = f"{folder}/trial-{uuid4().hex}"
        with files.open_output_stream(trial) as stream:
            stream.write(content)
        with files.open_input_stream(trial) as stream:
            read = stream.read()
        files.delete_file(trial)
    except (OSError, ValueError) as error:
        yield (
            f"{key}: '{path}' cannot be used from here: {error}; name a folder or URI that "
            "can be written"
        )
        return
    if read != content:
        yield f"{key}: '{path}' does not give back what is written to it"


def _tags(stage: StageConfig) -> tuple[str, ...]:
    """All that may stand before the prompts of `stage`, an empty text among them."""
    condition = None if stage.algorithm is None else stage.algorithm.condition
    return tuple(dict.fromkeys([stage.prompt_tag, *(condition.tags if condition else ())]))


def _tokenizer(run_file: RunFile, problems: list[str]) -> Tokenizer | None:
    name = run_file.model.tokenizer or run_file.model.path
    if name is None:
        problems.append(
            "model.tokenizer: a model that is built needs one: byte, char:ALPHABET, or the path of "
            "a tokenizer.json"
        )
        return None
    try:
        return build_tokenizer(name)
    except ValueError as error:
        problems.append(f"model.{'tokenizer' if run_file.model.tokenizer else 'path'}: {error}")
        return None


_Answers: TypeAlias = Literal["none", "gold", "all"]


@dataclass(frozen=True, slots=True)
class _Need:
    """Which splits a stage reads, and of which it needs the given answers too: the gold one of each
    task, or all."""

    train: bool
    train_answers: _Answers
    held_out: bool
    held_out_answers: _Answers

    @staticmethod
    def of(stage: StageConfig) -> _Need:
        is_given = stage.algorithm is not None and stage.algorithm.samples_from == "given"
        compares = stage.algorithm is not None and stage.algorithm.compares_given
        reads_train = stage.kind != "evaluate" and stage.trajectories is None
        is_beside = stage.algorithm is not None and stage.algorithm.companion == "given"
        reads_answers = reads_train and (
            compares or is_beside or (stage.kind == "train" and is_given)
        )
        reads_gold = stage.evaluate is not None and stage.evaluate.gold_likelihood
        return _Need(
            train=reads_train,
            train_answers=("all" if compares else "gold") if reads_answers else "none",
            held_out=stage.kind == "evaluate" or stage.evaluate is not None,
            held_out_answers="gold" if reads_gold else "none",
        )


class _Walk:
    """One pass over an environment's tasks; of a prompt the longest that `renderers` make."""

    def __init__(self, key: str, context: int, renderers: Sequence[Renderer]) -> None:
        self.problems: list[str] = []
        self._key = key
        self._context = context
        self._renderers = renderers
        self._num_broken = 0

    def measure(self, config: EnvConfig, need: _Need) -> Prompts | None:
        try:
            env = build("env", config.name, config.options)
            train = env.source("train") if need.train else None
            held_out = env.source("eval") if need.held_out else None
            num_train = 0 if train is None else len(train)
            num_eval = 0 if held_out is None else len(held_out)
        except (ValueError, OSError) as error:
            self._says(str(error))
            return None
        for split, source, count in (("train", train, num_train), ("eval", held_out, num_eval)):
            if source is not None and count == 0:
                self._says(f"environment '{config.name}' has no tasks in its {split} split")
        if self.problems:
            return None
        lengths = [
            *self._lengths(env, train, num_train, answers=need.train_answers),
            *self._lengths(env, held_out, num_eval, answers=need.held_out_answers),
        ]
        if self._num_broken > SHOWN_ROWS:
            self._says(f"{self._num_broken - SHOWN_ROWS:,} more tasks are broken")
        if not lengths:
            return None
        self._check_fit(lengths)
        longest = max(lengths, key=lambda length: length.prompt)
        return Prompts(
            num_train=num_train,
            num_eval=num_eval,
            num_measured=len(lengths),
            longest=longest.prompt,
            longest_id=longest.task_id,
            mean=sum(length.prompt for length in lengths) / len(lengths),
            longest_answer=max(length.answer for length in lengths),
        )

    def _lengths(
        self, env: Env, source: TaskSource | None, count: int, *, answers: _Answers
    ) -> Iterator[_Length]:
        if source is None:
            return
        for index in _indices(count):
            try:
                task = source.task(index)
                env.validate(task)
                prompt = max(len(each.prompt_ids(task)) for each in self._renderers)
                texts = _texts(env, task, answers)
                spell = self._renderers[0].answer_ids
                answer = max((len(spell(text)) for text in texts), default=0)
            except ValueError as error:
                self._num_broken += 1
                if self._num_broken <= SHOWN_ROWS:
                    self._says(str(error))
            else:
                yield _Length(task.id, prompt, answer)

    def _check_fit(self, lengths: Sequence[_Length]) -> None:
        """A prompt leaves room for one token at least, a given answer fits whole."""
        over = [length for length in lengths if length.needed > self._context]
        if not over:
            return
        worst = max(over, key=lambda length: length.needed)
        what = f"a prompt of {worst.prompt:,} tokens"
        what += f" and a given answer of {worst.answer:,}" if worst.answer else ""
        self._says(
            f"{len(over):,} of {len(lengths):,} tasks measured do not fit model.context "
            f"({self._context:,}); the longest is task {worst.task_id} with {what}: raise "
            f"model.context to {worst.needed:,} at least, or filter the tasks"
        )

    def _says(self, problem: str) -> None:
        self.problems.append(f"{self._key}: {problem}")


@dataclass(frozen=True, slots=True)
class _Length:
    task_id: str
    prompt: int
    answer: int

    @property
    def needed(self) -> int:
        return self.prompt + max(1, self.answer)


def _texts(env: Env, task: Task, answers: _Answers) -> tuple[str, ...]:
    if answers == "all" and isinstance(env, Compares):
        return tuple(answer.text for answer in env.answers(task))
    return () if answers == "none" else (env.gold(task),)


def _indices(count: int) -> Sequence[int]:
    """All of 0..count-1, or SAMPLE of them evenly spread, first and last among them."""
    if count <= ALL_MEASURED:
        return range(count)
    return [math.floor(place * (count - 1) / (SAMPLE - 1)) for place in range(SAMPLE)]
