"""What every learner backend promises, whatever holds the parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from manta.actors.backends.protocol import Backend, Offloads, Snapshots, TakesParameters
from manta.actors.backends.registry import build_backend
from manta.actors.backends.settings import OFFLOADING
from manta.actors.micro_batches import micro_batches
from manta.actors.models.causal import load_state, model_state
from manta.actors.models.policy import evaluate
from manta.actors.rows import Row
from manta.actors.weight_tensors import unpack
from manta.algorithms.tokens import LossTerms
from manta.envs.records import WeightVersion
from tests.contract.backend_kinds import BFLOAT16, KINDS, NEEDS_DEEPSPEED, settings_of
from tiny import join_group, run_ranks, tiny_model, tiny_rows

VERSION = WeightVersion(3, 0)
SIZES = (5, 4, 3)
STEPS = 20


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    """A backend, or one of its kinds, as `settings_of` takes it."""
    found: str = request.param
    return found


class PolicyGradient:
    """-advantage * logprob, averaged over all rows' trained tokens."""

    def __init__(self, rows: Sequence[Row], factor: float = 1.0) -> None:
        self.factor = factor / sum(row.num_tokens for row in rows)

    def __call__(self, rows: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
        advantages = [row.coefficients["advantage"] for row in rows]
        counts = torch.tensor([row.num_tokens for row in rows])
        advantage_T = torch.tensor(advantages).repeat_interleave(counts)
        loss = -(self.factor * advantage_T * stats["logprob"]).sum()
        sums = {"entropy": self.factor * stats["entropy"].detach().sum()}
        return LossTerms(loss, sums, {"logprob_max": stats["logprob"].detach().max()})


def train(
    backend: Backend, rows: Sequence[Row], loss: PolicyGradient, budget: int, steps: int
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for _ in range(steps):
        batches = micro_batches(rows, budget)
        metrics = backend.update(batches, ("logprob", "entropy"), 0.9, loss, 1e-3)
    return metrics


def flat(backend: Backend) -> Tensor:
    state = unpack(backend.weights(VERSION))
    return torch.cat([state[name].flatten() for name in sorted(state)])


def gradient_plainly(model: nn.Module, rows: Sequence[Row], loss: PolicyGradient) -> Tensor:
    loss(rows, evaluate(model, rows, ("logprob", "entropy"), 0.9)).loss.backward()
    named = dict(model.named_parameters())
    return torch.cat([named[name].grad.flatten() for name in sorted(named)])


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_one_sgd_update_moves_by_the_gradient(name: str) -> None:
    rows = tiny_rows(SIZES)
    loss = PolicyGradient(rows)
    wanted = gradient_plainly(tiny_model(), rows, loss)
    for budget in (1, 60, 10_000):
        backend = build_backend(settings_of(name, optimizer="sgd", clip_norm=0.0), tiny_model())
        before = flat(backend)
        # A step of 2**10 makes the movement large beside the rounding of the weights.
        metrics = backend.update(
            micro_batches(rows, budget), ("logprob", "entropy"), 0.9, loss, 1024.0
        )
        assert relative((before - flat(backend)) / 1024.0, wanted) < 1e-5
        assert metrics["grad_norm"] == pytest.approx(float(wanted.norm()), rel=1e-5)
        assert metrics["skipped_updates"] == 0


def test_other_parameters_are_taken_whatever_was_learnt(name: str) -> None:
    """The next stage's backend, over the same model, learns as one that never had others."""
    rows, settings = tiny_rows(SIZES), settings_of(name, optimizer="adamw")
    loss, model = PolicyGradient(rows), tiny_model()
    backend = build_backend(settings, model)
    train(backend, rows, loss, 10_000, 2)
    assert isinstance(backend, TakesParameters)
    with pytest.raises(ValueError, match=r"another model's weights: lm_head\.weight is unknown"):
        backend.take(model_state(tiny_model(5, tied=False)))
    backend.take({name: tensor.clone() for name, tensor in model_state(tiny_model(5)).items()})
    fresh = build_backend(settings, tiny_model(5))
    assert torch.equal(flat(backend), flat(fresh))
    following = build_backend(settings, model)
    for each in (following, fresh):
        train(each, rows, loss, 10_000, 2)
    assert relative(flat(following), flat(fresh)) < 1e-6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_micro_batches_do_not_change_the_movement(name: str, optimizer: str) -> None:
    rows = tiny_rows(SIZES)
    movements = []
    for budget in (1, 10_000):
        backend = build_backend(settings_of(name, optimizer=optimizer), tiny_model())
        before = flat(backend)
        train(backend, rows, PolicyGradient(rows), budget, STEPS)
        movements.append(flat(backend) - before)
    assert movements[0].norm() > 1e-4
    assert relative(movements[1], movements[0]) < 1e-4


def rank_main(
    rank: int, world_size: int, name: str, folder: Path, shares: dict[int, list[list[int]]]
) -> None:
    join_group(rank, world_size, folder)
    rows = tiny_rows(SIZES)
    mine = [rows[i] for i in shares[world_size][rank]]
    results = {}
    for optimizer in ("sgd", "adamw"):
        # Another seed on other ranks: rank 0's parameters are what counts.
        settings = settings_of(name, optimizer=optimizer)
        backend = build_backend(settings, tiny_model(0 if rank == 0 else 7))
        before = flat(backend)
        metrics = train(backend, mine, PolicyGradient(rows), 60, STEPS)
        results[optimizer] = (flat(backend) - before, metrics)
        if isinstance(backend, Snapshots):
            write = backend.snapshot()
            saved = backend.weights(VERSION).sha256
            train(backend, mine, PolicyGradient(rows), 60, 1)  # it goes on before it is written
            write(folder / f"{optimizer}-{world_size}")
            results[optimizer] += (saved, backend.weights(VERSION).sha256)
    torch.save(results, folder / f"{world_size}-{rank}.pt")
    dist.destroy_process_group()


def test_ranks_do_not_change_the_movement(tmp_path: Path) -> None:
    """Also where a rank has no rows at all (the last of four). The other backends are compared with
    this one in `test_sharded_backend`, on two ranks, which costs enough time."""
    name = "plain"
    shares = {
        1: [list(range(12))],
        2: [[0, 3, 4, 9], [1, 2, 5, 6, 7, 8, 10, 11]],
        4: [[5, 1], [0, 2, 3], [4, 6, 7, 8, 9, 10, 11], []],
    }
    for world_size in shares:
        run_ranks(rank_main, world_size, name, tmp_path, shares)
    alone = torch.load(tmp_path / "1-0.pt")
    for world_size in (1, 2, 4):
        first = torch.load(tmp_path / f"{world_size}-0.pt")
        for optimizer, (_, _, *hashes) in first.items():
            _check_snapshot(name, optimizer, tmp_path / f"{optimizer}-{world_size}", hashes)
        if world_size == 1:
            continue
        for optimizer, (movement, metrics, *_) in alone.items():
            assert relative(first[optimizer][0], movement) < 1e-4
            assert first[optimizer][1] == pytest.approx(metrics, rel=1e-4)
            for rank in range(1, world_size):
                other = torch.load(tmp_path / f"{world_size}-{rank}.pt")[optimizer]
                assert torch.equal(other[0], first[optimizer][0])
                assert other[1] == first[optimizer][1]


def _check_snapshot(name: str, optimizer: str, folder: Path, hashes: list[str]) -> None:
    """What the ranks have written, each its share, is the state on one rank that goes on as they
    did; `hashes` are of their weights then and an update later."""
    if not hashes:
        return
    rows = tiny_rows(SIZES)
    backend = build_backend(settings_of(name, optimizer=optimizer), tiny_model(seed=1))
    backend.load(folder)
    assert backend.weights(VERSION).sha256 == hashes[0]
    before = flat(backend)
    train(backend, rows, PolicyGradient(rows), 60, 1)
    again = build_backend(settings_of(name, optimizer=optimizer), tiny_model(seed=2))
    again.load(folder)
    train(again, rows, PolicyGradient(rows), 60, 1)
    assert torch.equal(flat(again), flat(backend))
    assert not torch.equal(flat(backend), before)
    if len(list(folder.glob("model*"))) == 1:
        assert backend.weights(VERSION).sha256 == hashes[1], "one rank: to the bit"


def test_clipping_bounds_the_movement(name: str) -> None:
    rows = tiny_rows(SIZES)
    backend = build_backend(settings_of(name, optimizer="sgd", clip_norm=0.01), tiny_model())
    before = flat(backend)
    loss = PolicyGradient(rows)
    metrics = backend.update([rows], ("logprob", "entropy"), 0.9, loss, 1024.0)
    assert metrics["grad_norm"] > 0.01
    assert float((flat(backend) - before).norm() / 1024.0) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_matrices_only(name: str, optimizer: str) -> None:
    rows = tiny_rows(SIZES)
    model = tiny_model()
    before = {key: tensor.clone() for key, tensor in model_state(model).items()}
    settings = settings_of(name, optimizer=optimizer, weight_decay=0.5)
    backend = build_backend(settings, model)
    backend.update([rows], ("logprob", "entropy"), 0.9, PolicyGradient(rows, 0.0), 0.1)
    after = unpack(backend.weights(VERSION))
    for key, tensor in before.items():
        wanted = tensor * 0.95 if tensor.ndim >= 2 else tensor
        torch.testing.assert_close(after[key], wanted)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resume_is_bit_exact(name: str, optimizer: str, tmp_path: Path) -> None:
    rows = tiny_rows(SIZES)
    settings = settings_of(name, optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    loss = PolicyGradient(rows)
    through = build_backend(settings, tiny_model())
    train(through, rows, loss, 60, 3)
    through.save(tmp_path)
    train(through, rows, loss, 60, 3)
    resumed = build_backend(settings, tiny_model(seed=1))
    resumed.load(tmp_path)
    train(resumed, rows, loss, 60, 3)
    assert through.weights(VERSION).sha256 == resumed.weights(VERSION).sha256


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(name: str, factor: float) -> None:
    rows = tiny_rows(SIZES)
    backend = build_backend(settings_of(name), tiny_model())
    train(backend, rows, PolicyGradient(rows), 60, 2)
    before = backend.weights(VERSION)
    assert train(backend, rows, PolicyGradient(rows, factor), 60, 1)["skipped_updates"] == 1
    assert backend.weights(VERSION).sha256 == before.sha256
    # The skipped update leaves no trace in the optimizer either.
    assert train(backend, rows, PolicyGradient(rows), 60, 1)["skipped_updates"] == 0
    undisturbed = build_backend(settings_of(name), tiny_model())
    train(undisturbed, rows, PolicyGradient(rows), 60, 3)
    assert backend.weights(VERSION).sha256 == undisturbed.weights(VERSION).sha256


def test_another_models_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    build_backend(settings_of(name), tiny_model(tied=False)).save(tmp_path)
    backend = build_backend(settings_of(name), tiny_model())
    before = backend.weights(VERSION).sha256
    with pytest.raises(ValueError, match=r"another model: lm_head\.weight is unknown"):
        backend.load(tmp_path)
    assert backend.weights(VERSION).sha256 == before


def test_another_optimizers_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    build_backend(settings_of(name, optimizer="sgd"), tiny_model()).save(tmp_path)
    with pytest.raises(ValueError, match="written with optimizer 'sgd'"):
        build_backend(settings_of(name), tiny_model()).load(tmp_path)
    with pytest.raises(ValueError, match="momentum_buffer is missing"):
        build_backend(settings_of(name, optimizer="sgd", momentum=0.9), tiny_model()).load(tmp_path)


@pytest.mark.parametrize("remains", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(name: str, remains: float, tmp_path: Path) -> None:
    backend = build_backend(settings_of(name), tiny_model())
    backend.save(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * remains)])
        with pytest.raises(ValueError, match=file.name):
            backend.load(tmp_path)
        file.write_bytes(whole)
    backend.load(tmp_path)
    assert json.loads((tmp_path / "learner.json").read_text())["updates"] == 0


@pytest.mark.parametrize("name", BFLOAT16)
def test_steps_below_bfloat16_add_up_in_the_master_weights(name: str, tmp_path: Path) -> None:
    rows = tiny_rows(SIZES)
    backend = build_backend(settings_of(name), tiny_model(dtype="bfloat16"))
    norm = "model.norm.weight"
    served = unpack(backend.weights(VERSION))[norm]
    loss = PolicyGradient(rows)
    for _ in range(20):
        backend.update([rows], ("logprob", "entropy"), 0.9, loss, 1e-5)
    backend.save(tmp_path)
    master = load_file(tmp_path / "model.safetensors")[norm]
    # Weights near 1 are 2**-8 apart in bfloat16: 20 steps of 1e-5 are far too small to be served.
    assert torch.equal(unpack(backend.weights(VERSION))[norm], served)
    assert 1e-5 < (master - served.float()).abs().max() < 3e-4
    resumed = build_backend(settings_of(name), tiny_model(seed=1, dtype="bfloat16"))
    resumed.load(tmp_path)
    assert resumed.weights(VERSION).sha256 == backend.weights(VERSION).sha256


@NEEDS_DEEPSPEED
def test_a_backend_that_would_add_gradients_up_in_bfloat16_refuses_it() -> None:
    with pytest.raises(ValueError, match=r"trains float32 parameters, the model has .*bfloat16"):
        build_backend(settings_of("deepspeed-2"), tiny_model(dtype="bfloat16"))


def check_taken_over(name: str, dtype: str) -> None:
    """As the next stage of a run does: what it learns is what it learns from a fresh model."""
    rows = tiny_rows(SIZES)
    model = tiny_model(dtype=dtype)
    first = build_backend(settings_of(name), model)
    first.update([rows], ("logprob", "entropy"), 0.9, PolicyGradient(rows), 1e-3)
    copy = tiny_model(dtype=dtype)
    with torch.no_grad():
        load_state(copy, unpack(first.weights(VERSION)))
    taken, fresh = build_backend(settings_of(name), model), build_backend(settings_of(name), copy)
    for backend in (taken, fresh):
        train(backend, rows, PolicyGradient(rows), 60, STEPS)
    assert taken.weights(VERSION).sha256 == fresh.weights(VERSION).sha256


def test_a_second_backend_takes_a_model_over_from_the_first(name: str) -> None:
    check_taken_over(name, "float32")


@pytest.mark.parametrize("name", BFLOAT16)
def test_a_second_backend_takes_a_bfloat16_model_over(name: str) -> None:
    check_taken_over(name, "bfloat16")


def test_evaluate_leaves_no_gradient(name: str) -> None:
    rows = tiny_rows(SIZES)
    backend = build_backend(settings_of(name, tokens_per_micro_batch=60), tiny_model())
    found = backend.evaluate(rows, ("logprob", "entropy"), 0.9)
    wanted = evaluate(tiny_model(), rows, ("logprob", "entropy"), 0.9)
    for key in ("logprob", "entropy"):
        assert not found[key].requires_grad
        torch.testing.assert_close(found[key], wanted[key].detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("offloading", OFFLOADING)
def test_a_backend_that_is_offloaded_between_steps_learns_the_same(
    offloading: str, dtype: str
) -> None:
    rows = tiny_rows(SIZES)
    loss = PolicyGradient(rows)
    through, apart = (build_backend(settings_of(offloading), tiny_model(dtype=dtype)) for _ in "12")
    assert isinstance(apart, Offloads)
    full = apart.held_bytes()
    # Gradients at least: float32, whatever the weights are.
    assert full >= 4 * flat(through).numel()
    for _ in range(3):
        apart.restore()
        assert apart.held_bytes() == full
        for backend in (through, apart):
            train(backend, rows, loss, 60, 2)
        apart.offload()
        assert apart.held_bytes() == 0
    assert apart.weights(VERSION).sha256 == through.weights(VERSION).sha256


@pytest.mark.parametrize("offloading", OFFLOADING)
def test_an_offloaded_backend_scores_saves_and_loads_but_updates_nothing(
    offloading: str, tmp_path: Path
) -> None:
    rows = tiny_rows(SIZES)
    loss = PolicyGradient(rows)
    backend, resumed = (build_backend(settings_of(offloading), tiny_model(i)) for i in range(2))
    train(backend, rows, loss, 60, 2)
    assert isinstance(backend, Offloads)
    assert isinstance(resumed, Offloads)
    before = backend.evaluate(rows, ("logprob",), 0.9)["logprob"]
    for each in (backend, resumed):
        each.offload()
        each.offload()
    assert torch.equal(backend.evaluate(rows, ("logprob",), 0.9)["logprob"], before)
    with pytest.raises(RuntimeError, match="restore"):
        train(backend, rows, loss, 60, 1)
    backend.save(tmp_path)
    resumed.load(tmp_path)
    for each in (backend, resumed):
        each.restore()
        train(each, rows, loss, 60, 2)
    assert backend.weights(VERSION).sha256 == resumed.weights(VERSION).sha256
