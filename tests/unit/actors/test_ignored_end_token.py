"""Groups that an engine samples: where their samples end."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from benchmarks.pinned_lengths import pinned_table
from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.lanes import Admission, Lane
from manta.actors.models.causal import build_model
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.production import build_production, unscored
from manta.envs.group import Scoring
from manta.envs.records import GroupId, ScoredGroup, WeightVersion

WORDS = {f"w{word}": word for word in range(510)} | {"<end>": 510}


def made(tokenizer: str, ignore_eos: bool) -> ScoredGroup:
    """A group of PinnedLengths from a real engine whose vocabulary is that of `WORDS`."""
    sizes = BuildSpec(layers=1, width=8, heads=2, mlp_width=16)
    model = build_model(ModelSpec(build=sizes, context=300), len(WORDS), 0)
    engine = EmbeddedEngine(model, 300, 8, 1, False, WeightVersion(0, 0))
    lane = Lane(
        name="rl",
        env="benchmarks.pinned_lengths:PinnedLengths",
        env_options={"workload": "long_tail", "tasks": 3, "samples": 64, "seed": 5},
        split="train",
        samples_from="policy",
        samples_per_prompt=64,
        seed=0,
        context=300,
        max_new_tokens=256,
        ignore_eos=ignore_eos,
    )
    production = build_production(lane, tokenizer, engine.generate, Scoring(unscored))
    try:
        return asyncio.run(production.make(Admission(GroupId(0, 0, 0), index=2)))
    finally:
        engine.close()


@pytest.fixture
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<end>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return str(folder)


def test_the_end_token_ends_a_sample_unless_it_is_ignored(tokenizer: str) -> None:
    pinned = pinned_table("long_tail", 3, 64, 5).lengths[2].tolist()
    ignoring, heeding = made(tokenizer, True), made(tokenizer, False)
    assert [int(t.loss_mask.sum()) for t in ignoring.trajectories] == pinned
    assert {t.finish_reason for t in ignoring.trajectories} == {"length"}
    ends = [t for t in ignoring.trajectories if (t.token_ids == WORDS["<end>"]).any()]
    assert ends, "no sample drew the end token: the test shows nothing"
    assert any(t.finish_reason == "stop" for t in heeding.trajectories)
    for heeded, ignored in zip(heeding.trajectories, ignoring.trajectories, strict=True):
        assert np.array_equal(heeded.token_ids, ignored.token_ids[: len(heeded.token_ids)])
