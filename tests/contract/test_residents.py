"""What every learner backend that holds residents promises, whatever holds the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from manta.actors.backends.protocol import Backend, HoldsResidents, Offloads
from manta.actors.backends.registry import build_backend
from manta.actors.backends.residents import Resident, build_residents
from manta.actors.backends.settings import HOLDING_RESIDENTS, LearnerSettings
from manta.actors.micro_batches import micro_batches
from manta.actors.models.policy import evaluate
from manta.actors.rows import Row
from manta.actors.weight_tensors import unpack
from manta.algorithms.part_settings import CriticSettings
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import LossTerms
from manta.envs.records import WeightVersion
from tiny import VOCABULARY, tiny_model, tiny_rows, tiny_spec

VERSION = WeightVersion(3, 0)
ROWS = tiny_rows((5, 4, 3))
WANTS = ("logprob", "value")
BOTH = {"policy": 1e-3, "critic": 3e-3}
CRITIC_ALONE = {"critic": 3e-3}


@pytest.fixture(params=HOLDING_RESIDENTS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


class Held:
    """A backend with a critic, and both modules at hand."""

    def __init__(
        self, name: str, kind: str = "own", seed: int = 0, dtype: str = "float32", **values: object
    ) -> None:
        settings = LearnerSettings(backend=name, **{"momentum": 0.9, **values})  # type: ignore[arg-type]
        self.policy = tiny_model(seed, dtype=dtype)
        critic = CriticSettings(model=kind, clip_norm=0.7)  # type: ignore[arg-type]
        algorithm = AlgorithmSettings("ppo", advantage="gae", critic=critic)
        spec = tiny_spec(dtype=dtype)
        residents = build_residents(algorithm, settings, spec, VOCABULARY, self.policy)
        self.critic: nn.Module = residents["critic"].module
        generator = torch.Generator().manual_seed(seed)
        residents["critic"].module.head.weight.data.normal_(generator=generator)  # type: ignore[union-attr,operator]
        self.backend: Backend = build_backend(settings, self.policy, residents)
        assert isinstance(self.backend, HoldsResidents)
        self.each: HoldsResidents = self.backend

    def train(
        self, rates: Mapping[str, float], steps: int = 1, factor: float = 1.0
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for _ in range(steps):
            batches = micro_batches(ROWS, 60)
            if "policy" in rates:
                loss = Both(factor)
                metrics = self.each.update_each(batches, WANTS, 0.9, loss, rates)
            else:
                metrics = self.each.update_each(batches, ("value",), 0.9, Values(factor), rates)
        return metrics

    def sha256(self) -> str:
        return self.backend.weights(VERSION).sha256

    def values(self) -> Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.critic.parameters()])


class Values:
    """Mean squared distance of the values from the advantages."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor / sum(row.num_tokens for row in ROWS)

    def __call__(self, rows: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
        counts = torch.tensor([row.num_tokens for row in rows])
        advantages = torch.tensor([row.coefficients["advantage"] for row in rows])
        target_T = advantages.repeat_interleave(counts)
        return LossTerms(self.factor * (stats["value"] - target_T).square().sum(), {}, {})


class Both(Values):
    """The same, times `of_critic`, and the policy gradient."""

    def __init__(self, factor: float = 1.0, of_critic: float = 1.0) -> None:
        super().__init__(factor)
        self.of_critic = of_critic

    def __call__(self, rows: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
        counts = torch.tensor([row.num_tokens for row in rows])
        advantages = torch.tensor([row.coefficients["advantage"] for row in rows])
        policy = -(self.factor * advantages.repeat_interleave(counts) * stats["logprob"]).sum()
        return LossTerms(policy + self.of_critic * super().__call__(rows, stats).loss, {}, {})


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_one_sgd_update_moves_each_by_its_own_gradient(name: str, kind: str) -> None:
    """At its own rate, clipped by its own norm: the critic's norm here exceeds the bound."""
    held = Held(name, kind, optimizer="sgd", momentum=0.0, clip_norm=0.0)
    loss = Both()(ROWS, evaluate(held.policy, ROWS, WANTS, 0.9, (held.critic,)))  # type: ignore[arg-type]
    parameters = {"policy": held.policy.parameters(), "critic": held.critic.parameters()}
    flat = {key: list(each) for key, each in parameters.items()}
    found = torch.autograd.grad(loss.loss, [*flat["policy"], *flat["critic"]])
    of_policy = torch.cat([g.flatten() for g in found[: len(flat["policy"])]])
    of_critic = torch.cat([g.flatten() for g in found[len(flat["policy"]) :]])
    before = {key: [p.detach().clone() for p in each] for key, each in flat.items()}
    # Steps of powers of two make the movement large beside the rounding of the weights.
    metrics = held.train({"policy": 1024.0, "critic": 4096.0})
    moved = {
        key: torch.cat([(b - p.detach()).flatten() for b, p in zip(before[key], each, strict=True)])
        for key, each in flat.items()
    }
    assert relative(moved["policy"] / 1024.0, of_policy) < 1e-5
    norm = float(of_critic.norm())
    assert norm > 0.7
    assert relative(moved["critic"] / 4096.0, of_critic * 0.7 / norm) < 1e-5
    assert metrics["grad_norm"] == pytest.approx(float(of_policy.norm()), rel=1e-5)
    assert metrics["critic/grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["own", "shared"])
def test_a_policy_that_is_not_named_stays_as_it_is_to_the_bit(
    name: str, kind: str, dtype: str, tmp_path: Path
) -> None:
    held = Held(name, kind, dtype=dtype, weight_decay=0.1)
    held.train(BOTH, 2)
    before, values = held.sha256(), held.values()
    held.backend.save(tmp_path / "before")
    metrics = held.train(CRITIC_ALONE, 3)
    assert held.sha256() == before
    assert (held.values() - values).abs().max() > 1e-4
    assert "grad_norm" not in metrics and metrics["critic/grad_norm"] > 0
    held.backend.save(tmp_path / "after")
    for file in ("model.safetensors", "learner.json"):
        content = [(tmp_path / each / file).read_bytes() for each in ("before", "after")]
        assert content[0] == content[1]
    slots = [load_file(tmp_path / each / "optimizer.safetensors") for each in ("before", "after")]
    for key, tensor in slots[0].items():
        assert torch.equal(slots[1][key], tensor) == ("critic." not in key), key
    # It goes on training afterwards, and so does a critic that was not named.
    held.train(BOTH)
    assert held.sha256() != before


def test_a_critic_that_is_not_named_stays_as_it_is(name: str) -> None:
    held = Held(name)
    before, values = held.sha256(), held.values()
    held.train({"policy": 1e-3}, 2)
    assert held.sha256() != before
    assert torch.equal(held.values(), values)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_what_is_published_and_read_by_others_is_the_policy_alone(
    name: str, kind: str, tmp_path: Path
) -> None:
    held = Held(name, kind)
    held.train(BOTH)
    held.backend.save(tmp_path)
    published = unpack(held.backend.weights(VERSION))
    assert published.keys() == dict(held.policy.named_parameters()).keys()
    assert load_file(tmp_path / "model.safetensors").keys() == published.keys()
    private = load_file(tmp_path / "optimizer.safetensors")
    for prefix in ("critic.head.", "optimizer.critic.head.", "optimizer.model."):
        assert any(key.startswith(prefix) for key in private)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["own", "shared"])
def test_resume_is_bit_exact(name: str, kind: str, optimizer: str, tmp_path: Path) -> None:
    through = Held(name, kind, optimizer=optimizer)
    through.train(CRITIC_ALONE, 2)
    through.train(BOTH, 2)
    through.backend.save(tmp_path)
    resumed = Held(name, kind, seed=1, optimizer=optimizer)
    resumed.backend.load(tmp_path)
    for held in (through, resumed):
        held.train(BOTH, 3)
    assert through.sha256() == resumed.sha256()
    assert torch.equal(through.values(), resumed.values())


def test_a_checkpoint_without_the_critic_is_named(name: str, tmp_path: Path) -> None:
    build_backend(LearnerSettings(backend=name), tiny_model()).save(tmp_path)
    with pytest.raises(ValueError, match=r"another model: critic\..* is missing"):
        Held(name).backend.load(tmp_path)


@pytest.mark.parametrize(
    ("loss", "rates"),
    [
        (Both(float("nan")), BOTH),
        (Both(of_critic=float("nan")), BOTH),
        (Both(of_critic=float("inf")), BOTH),
        (Values(float("nan")), CRITIC_ALONE),
    ],
    ids=["both", "critic-nan", "critic-inf", "warm-up"],
)
def test_a_loss_that_is_not_finite_moves_neither(
    name: str, loss: Values, rates: Mapping[str, float]
) -> None:
    """The critic's alone stops the policy too, and leaves no trace in either optimizer."""
    held, undisturbed = Held(name), Held(name)
    for each in (held, undisturbed):
        each.train(BOTH)
    before, values = held.sha256(), held.values()
    wants = WANTS if "policy" in rates else ("value",)
    metrics = held.each.update_each(micro_batches(ROWS, 60), wants, 0.9, loss, rates)
    assert metrics["skipped_updates"] == 1
    assert held.sha256() == before
    assert torch.equal(held.values(), values)
    for each in (held, undisturbed):
        assert each.train(BOTH, 2)["skipped_updates"] == 0
    assert held.sha256() == undisturbed.sha256()
    assert torch.equal(held.values(), undisturbed.values())


def test_values_are_evaluated_in_row_order_without_gradients(name: str) -> None:
    held = Held(name, tokens_per_micro_batch=60)
    found = held.backend.evaluate(ROWS, WANTS, 0.9)
    wanted = evaluate(held.policy, ROWS, WANTS, 0.9, (held.critic,))  # type: ignore[arg-type]
    for key in WANTS:
        assert not found[key].requires_grad
        torch.testing.assert_close(found[key], wanted[key].detach(), rtol=1e-5, atol=1e-5)


def test_offloaded_between_steps_both_learn_the_same(name: str) -> None:
    through, apart = Held(name), Held(name)
    assert isinstance(apart.backend, Offloads)
    assert apart.backend.held_bytes() >= 4 * apart.values().numel() * 2
    for _ in range(2):
        apart.backend.restore()
        for held in (through, apart):
            held.train(BOTH)
        apart.backend.offload()
        assert apart.backend.held_bytes() == 0
    assert through.sha256() == apart.sha256()
    assert torch.equal(through.values(), apart.values())


def test_a_backend_that_cannot_hold_a_critic_says_so() -> None:
    settings = LearnerSettings(backend="collections:OrderedDict")
    residents: dict[str, Resident] = {"critic": Resident(nn.Identity(), settings)}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no update_each\(\), so it cannot train critic"):
        build_backend(settings, tiny_model(), residents)
