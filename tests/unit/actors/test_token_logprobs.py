"""The scorer of kind logprobs, and the reward that two of them make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from manta.actors.scorers.reward_model import ScorerSettings
from manta.actors.scorers.token_logprobs import TokenLogprobs
from manta.envs.failures import RewardFailed
from manta.envs.protocols import Services
from manta.envs.records import TOKEN_REWARDS, Score, Shown, Task
from manta.envs.registry import build
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.formula import Formula
from manta.envs.rewards.token_log_ratio import LOGPROB
from manta.envs.tokenizer import CharTokenizer
from tests.tiny import VOCABULARY, groups_of

POLICY = CharTokenizer("0123456789+=abcde")
TRAJECTORIES = groups_of((7,))[0].trajectories
SHOWN = [Shown(Task("t", "p", None, "tiny"), (each,)) for each in TRAJECTORIES]


def saved(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    return folder


def by_transformers(folder: Path) -> list[np.ndarray]:
    """The log-prob of each token after those before it, by the library's own forward pass."""
    model = Qwen2ForCausalLM.from_pretrained(folder).eval()
    found = []
    for trajectory in TRAJECTORIES:
        ids = torch.from_numpy(trajectory.token_ids.astype(np.int64))
        with torch.no_grad():
            log_LV = model(ids[None]).logits[0].double().log_softmax(-1)
        own = np.zeros(len(ids))
        own[1:] = log_LV[torch.arange(len(ids) - 1), ids[1:]].numpy()
        found.append(np.where(trajectory.loss_mask, own, 0.0))
    return found


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_log_probs_are_transformers_own(tmp_path: Path, tokens_per_batch: int) -> None:
    folder = saved(tmp_path / "p", 0)
    scorer = TokenLogprobs(folder, POLICY, ScorerSettings(tokens_per_batch))
    assert scorer.version.startswith("p#")
    scores = scorer.score(SHOWN)
    for score, wanted in zip(scores, by_transformers(folder), strict=True):
        assert score.columns[LOGPROB].dtype == np.float32
        np.testing.assert_allclose(score.columns[LOGPROB], wanted, atol=1e-5)
        assert score.value == pytest.approx(wanted.sum(), abs=1e-4)


class Named:
    """A scorer without workers."""

    def __init__(self, scorer: TokenLogprobs) -> None:
        self._scorer, self.version = scorer, scorer.version

    async def __call__(self, shown: list[Shown]) -> list[Score]:
        return list(self._scorer.score(shown))


class Whole:
    version = "whole"

    async def __call__(self, shown: list[Shown]) -> list[Score]:
        return [Score(1.0, {}) for _ in shown]


async def test_rto_pays_every_token_its_clipped_log_ratio(tmp_path: Path) -> None:
    folders = {name: saved(tmp_path / name, seed) for seed, name in enumerate(("dpo", "ref"))}
    scorers = {
        name: Named(TokenLogprobs(folder, POLICY, ScorerSettings(10_000)))
        for name, folder in folders.items()
    }
    options = {"scorer": "dpo", "against": "ref"}
    rto = build("reward", "token_log_ratio", options)
    composition = Composition(Formula("0"), {"rto": rto}, within={"rto": 2.0})
    scores = await composition.score_group(
        Task("t", "p", None, "tiny"),
        TRAJECTORIES,
        Services(scorers=scorers),  # type: ignore[arg-type]
    )
    ours, theirs = (by_transformers(folders[name]) for name in ("dpo", "ref"))
    is_clipped = 0
    for score, own, other, each in zip(scores, ours, theirs, TRAJECTORIES, strict=True):
        wanted = np.clip(0.05 * (own - other), -0.05, 0.05)
        is_clipped += int((np.abs(wanted) == 0.05).sum())
        paid = score.columns[TOKEN_REWARDS]
        np.testing.assert_allclose(paid, 2.0 * wanted, atol=2e-6)
        assert not paid[~each.loss_mask].any()
        assert score.components["rto"] == pytest.approx(wanted.sum(), abs=1e-4)
    assert 0 < is_clipped < sum(int(each.loss_mask.sum()) for each in TRAJECTORIES)
    whole = Services(scorers={"dpo": scorers["dpo"], "ref": Whole()})  # type: ignore[dict-item]
    with pytest.raises(RewardFailed, match=r"'ref' says nothing of tokens: set scorers\.ref\.kind"):
        await composition.score_group(Task("t", "p", None, "tiny"), TRAJECTORIES, whole)


def test_what_it_cannot_read_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "p", 0)
    scorer = TokenLogprobs(folder, POLICY, ScorerSettings(1000))
    long = replace(
        TRAJECTORIES[0],
        token_ids=np.zeros(33, np.int32),
        loss_mask=np.arange(33) > 0,
    )
    with pytest.raises(ValueError, match=r"task t, sample 0, has 33 tokens, .* at most 32"):
        scorer.score([replace(SHOWN[0], trajectories=(long,))])
    model = Qwen2ForCausalLM.from_pretrained(folder)
    next(model.parameters()).data.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    broken = TokenLogprobs(tmp_path / "broken", POLICY, ScorerSettings(1000))
    with pytest.raises(ValueError, match=r"a token of the trajectory of task t, .* impossible"):
        broken.score(SHOWN)
    with pytest.raises(ValueError, match="there is no folder"):
        TokenLogprobs(tmp_path / "none", POLICY, ScorerSettings(1000))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scorer": "a", "against": "a"}, "both 'a': their ratio is 1"),
        ({"scorer": "a", "against": "b", "scale": 0.0}, "must be above 0"),
        ({"scorer": "a", "against": "b", "clip": -1.0}, "must be above 0"),
    ],
)
def test_ratios_that_are_none(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build("reward", "token_log_ratio", options)  # type: ignore[arg-type]
