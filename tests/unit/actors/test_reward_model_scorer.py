"""A reward model's scores are transformers' own, however rows are batched."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from manta.actors.scorers.reward_model import (
    RewardModelScorer,
    ScorerSettings,
    version_of_folder,
)
from manta.envs.records import Message, Shown, Task, Trajectory
from manta.envs.tokenizer import CharTokenizer, FileTokenizer
from manta.envs.transcript import given_trajectory
from tests.tiny import VOCABULARY, trajectory

PAD = VOCABULARY - 1
POLICY = CharTokenizer("0123456789+=abcde")
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_labels": 1,
}


def saved(folder: Path, kind: str = "qwen2", **options: object) -> Path:
    sizes = {**SIZES, "pad_token_id": PAD, **options}
    torch.manual_seed(0)
    made: PreTrainedModel = {
        "qwen2": lambda: Qwen2ForSequenceClassification(Qwen2Config(**sizes)),
        "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**sizes)),
        "bert": lambda: BertForSequenceClassification(BertConfig(**sizes)),
    }[kind]()
    for parameter in made.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    made.save_pretrained(folder)
    return folder


def shown(count: int = 9) -> list[Shown]:
    """Random trajectories; three samples at a time begin alike, and one ends with padding."""
    generator = np.random.default_rng(0)
    found = []
    for index in range(count):
        one = trajectory(generator, index, with_holes=index % 4 == 1)
        ids = np.minimum(one.token_ids, PAD - 2)
        ids[:5] = index // 3
        if index == 4:
            ids[-2:] = PAD
        said = one.loss_mask & (np.arange(len(ids)) > 4)
        found.append(
            Shown(Task(f"t{index // 3}", "p", None, "tiny"),
                  (replace(one, token_ids=ids, loss_mask=said),))
        )  # fmt: skip
    return found


def by_transformers(folder: Path, rows: Sequence[Trajectory]) -> list[float]:
    """One row at a time, nothing padded."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return [
            float(model(torch.from_numpy(row.token_ids.astype(np.int64))[None]).logits[0, 0])
            for row in rows
        ]


def scorer(folder: Path, tokens_per_batch: int = 10_000) -> RewardModelScorer:
    return RewardModelScorer(folder, POLICY, ScorerSettings(tokens_per_batch))


@pytest.mark.parametrize("kind", ["qwen2", "llama", "bert"])
def test_scores_equal_transformers_own_in_any_batches(kind: str, tmp_path: Path) -> None:
    folder, asked = saved(tmp_path, kind), shown()
    wanted = by_transformers(folder, [each.trajectories[0] for each in asked])
    assert np.std(wanted) > 0.01
    for tokens in (1, 40, 10_000):
        found = [score.value for score in scorer(folder, tokens).score(asked)]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert scorer(folder).score([]) == ()


def test_a_row_s_score_alone_does_not_depend_on_the_others(tmp_path: Path) -> None:
    alone = scorer(saved(tmp_path), tokens_per_batch=1)
    together, apart = alone.score(shown()), [alone.score([each])[0] for each in shown()]
    assert together == tuple(apart)


def test_a_score_that_is_none_is_an_error_that_names_the_trajectory(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    broken, asked = scorer(folder), shown()
    with torch.no_grad():
        broken._model.get_input_embeddings().weight[PAD - 1] = math.nan
    assert len(broken.score(asked)) == 9
    asked[6].trajectories[0].token_ids[-1] = PAD - 1
    with pytest.raises(ValueError, match=r"task t2, sample 6, as nan: .* nothing was rewarded"):
        broken.score(asked)


def test_versions_name_the_weights(tmp_path: Path) -> None:
    first, same = saved(tmp_path / "a" / "rm"), saved(tmp_path / "b" / "rm")
    version = version_of_folder(first)
    assert version == version_of_folder(same) == scorer(first).version
    assert version.startswith("rm#")
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps({**config, "pad_token_id": 3}))
    assert version_of_folder(same) != version


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder with config\.json and"):
        scorer(tmp_path / "absent")
    with pytest.raises(ValueError, match="has 3 outputs; one with a single score is needed"):
        scorer(saved(tmp_path / "three", num_labels=3))
    headless = saved(tmp_path / "headless")
    Qwen2ForSequenceClassification.from_pretrained(headless).model.save_pretrained(headless)
    with pytest.raises(ValueError, match=r"lacks score\.weight: it is no reward model"):
        scorer(headless)


def test_rows_that_the_model_cannot_read_are_named(tmp_path: Path) -> None:
    small = scorer(saved(tmp_path / "small", vocab_size=10, pad_token_id=9))
    with pytest.raises(ValueError, match=r"sample 0, has a token \d+, reward model small#\w+ know"):
        small.score(shown())
    short = scorer(saved(tmp_path / "short", max_position_embeddings=4))
    with pytest.raises(ValueError, match=r"sample 0, has \d+ tokens, .* made for at most 4"):
        short.score(shown())
    pair = Shown(shown()[0].task, (shown()[0].trajectories * 2))
    with pytest.raises(ValueError, match="2 trajectories are shown as one"):
        scorer(saved(tmp_path / "rm")).score([pair])


WORDS = ["<pad>", "</s>", "<user>", "<bot>", "what", "is", "this", "fine", "bad", "?", "<unk>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }}"
    "{% if m.role == 'assistant' %} </s>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<bot> {% endif %}"
)


def words(folder: Path, order: Sequence[str], template: str | None) -> FileTokenizer:
    """A tokenizer of whole words in a model's folder."""
    made = FastTokenizer(WordLevel({word: i for i, word in enumerate(order)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["<pad>", "</s>", "<user>", "<bot>"])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "pad_token": "<pad>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return FileTokenizer(str(folder))


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_model_with_another_tokenizer_reads_prompt_and_answer_as_text(
    template: str | None, tmp_path: Path
) -> None:
    folder = saved(tmp_path, vocab_size=len(WORDS), pad_token_id=0)
    words(folder, WORDS, template)
    task = Task("t", (Message("user", "what is this ?"),), None, "tiny")
    answer = given_trajectory("t", np.zeros(3, np.int32), np.ones(2, np.int32), "fine")
    told = ["<user>", "what", "is", "this", "?", "<bot>", "fine", "</s>"]
    if template is None:
        task = replace(task, prompt="what is this ?")
        told = ["what", "is", "this", "?", "fine", "</s>"]
    ids = np.array([WORDS.index(word) for word in told], np.int32)
    [wanted] = by_transformers(folder, [replace(answer, token_ids=ids)])
    [found] = scorer(folder).score([Shown(task, (answer,))])
    assert found.value == pytest.approx(wanted, abs=1e-5)
    turns = replace(answer, turns=answer.turns * 2)
    with pytest.raises(ValueError, match="has several turns: a reward model with another token"):
        scorer(folder).score([Shown(task, (turns,))])


def test_equal_vocabularies_share_their_tokens(tmp_path: Path) -> None:
    policy = words(tmp_path / "policy", WORDS, None)
    folder = saved(tmp_path / "rm", vocab_size=len(WORDS), pad_token_id=0)
    words(folder, WORDS, TEMPLATE)
    answer = given_trajectory("t", np.full(3, 4, np.int32), np.full(2, 5, np.int32), "no such text")
    asked = [Shown(Task("t", "what", None, "tiny"), (answer,))]
    [wanted] = by_transformers(folder, [answer])
    [found] = RewardModelScorer(folder, policy, ScorerSettings(100)).score(asked)
    assert found.value == pytest.approx(wanted, abs=1e-5)
    words(folder, WORDS[::-1], None)
    [other] = RewardModelScorer(folder, policy, ScorerSettings(100)).score(asked)
    assert other.value != pytest.approx(wanted, abs=1e-5)
