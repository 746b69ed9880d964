"""The same losses of pairs, labels and a teacher as TRL: its own code computes them, ours too.

Differences have names. TRL's DPO trainer averages IPO over tokens (`length_normalized`), its online
one does not. Its KTO makes the reference point of answers to other prompts, which are given here:
with the rows themselves it is ours of `samples`. Its distillation weighs a token's log-prob where
ours weighs its ratio, so that the values differ and the gradients do not.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import denominators, row_weight
from manta.algorithms.coupled import Scalars, Units, couple
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.token_stage import token_stage

trl = pytest.importorskip("trl", reason="TRL is not installed: make test installs it")

COUNTS = torch.tensor([5, 2, 7, 1, 4, 4])
"""Tokens of three preferred answers, and of the others."""
WIDTH = 7
GOOD = torch.tensor([True, False, False, True, False, True])


class OneCpu:
    """What TRL asks of its accelerator."""

    device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather


class Bare:
    """A trainer's own loss, without a model, data or arguments to start it with."""

    def __init__(self, **told: object) -> None:
        self.accelerator = OneCpu()
        self.model = torch.nn.Identity().train()
        self.aux_loss_enabled = False
        self.precompute_ref_logps = True
        self.label_smoothing = 0.0
        self._metrics = {"train": defaultdict(list)}
        self._total_train_tokens, self._tp_size = 0, 1
        for name, value in told.items():
            setattr(self, name, value)


class Samples:
    """Log-probs of ragged answers under both policies, [B, T], 0 beyond their ends."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (2, len(COUNTS), WIDTH)
        policy_BT, noise_BT = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.mask_BT = torch.arange(WIDTH) < COUNTS[:, None]
        self.policy_BT = torch.where(self.mask_BT, 0.5 * policy_BT - 2, 0.0).requires_grad_()
        reference_BT = self.policy_BT.detach() + 0.4 * noise_BT - 0.1
        self.reference_BT = torch.where(self.mask_BT, reference_BT, 0.0)
        self.reference_B = self.reference_BT.sum(1)

    def model(self, **_: object) -> SimpleNamespace:
        """As TRL calls it: the log-probs of all tokens but the first."""
        zeros = torch.zeros_like(self.policy_BT)
        return SimpleNamespace(
            log_probs=self.policy_BT, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0
        )

    def inputs(self) -> dict[str, Tensor]:
        """One token of prompt before each answer."""
        prompt = torch.zeros(len(COUNTS), 1, dtype=torch.int64)
        ids = torch.zeros(len(COUNTS), WIDTH + 1, dtype=torch.int64)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "completion_mask": torch.cat([prompt, self.mask_BT.long()], dim=1),
        }

    def ours(self, settings: AlgorithmSettings) -> tuple[Tensor, Tensor]:
        """Loss and gradient by the log-probs."""
        count = len(COUNTS)
        if settings.unit == "pair":
            members = torch.arange(count).reshape(2, -1).T.flatten()
            units = torch.arange(count // 2).repeat_interleave(2)
            labels = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(count // 2)
        else:
            members, units, labels = torch.arange(count), torch.arange(count), GOOD.double()
        num_units = int(units[-1]) + 1
        told = Units(
            members,
            units,
            labels,
            torch.zeros(num_units, dtype=torch.float64),
            torch.full((num_units,), 1 / num_units, dtype=torch.float64),
        )
        own_BT = self.policy_BT.detach().clone().requires_grad_()
        scalars = Scalars(own_BT.detach().sum(1), self.reference_B, COUNTS.double())
        coupling = couple(settings, told, torch.arange(count), scalars)
        row_BT = torch.arange(count)[:, None].expand(count, WIDTH)
        loss = coupling.terms(own_BT[self.mask_BT], row_BT[self.mask_BT]).loss
        return loss.detach(), torch.autograd.grad(loss, own_BT)[0]

    def check(self, expected: Tensor, settings: AlgorithmSettings) -> None:
        (wanted_BT,) = torch.autograd.grad(expected, self.policy_BT)
        loss, gradient_BT = self.ours(settings)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-14)
        wanted_BT = torch.where(self.mask_BT, wanted_BT, 0.0)
        torch.testing.assert_close(gradient_BT, wanted_BT, rtol=1e-10, atol=1e-13)
        assert gradient_BT.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("loss_type", "settings"),
    [
        ("sigmoid", PRESETS["dpo"]),
        ("sigmoid", PRESETS["online_dpo"]),
        ("sigmoid_norm", replace(PRESETS["dpo"], length_normalized=True)),
        ("ipo", PRESETS["ipo"]),
    ],
)
def test_pairs_as_the_dpo_trainer(loss_type: str, settings: AlgorithmSettings) -> None:
    class Trainer(Bare, trl.DPOTrainer):
        pass

    samples = Samples()
    chosen, rejected = samples.reference_B.chunk(2)
    trainer = Trainer(
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=settings.beta,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    inputs = {**samples.inputs(), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    samples.check(trainer._compute_loss(samples.model, inputs, False), settings)


def test_sums_of_ipo_as_the_online_trainer_s_formula() -> None:
    """`(logits - 1 / (2 beta))^2` of summed log-probs, which stands inside of its training step."""
    settings, samples = replace(PRESETS["ipo"], length_normalized=False), Samples()
    chosen, rejected = (samples.policy_BT.sum(1) - samples.reference_B).chunk(2)
    samples.check(((chosen - rejected - 1 / (2 * settings.beta)) ** 2).mean(), settings)


@pytest.mark.parametrize("gamma", [0.5, 1.6])
def test_simpo_as_the_cpo_trainer(gamma: float) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")

    class Trainer(Bare, cpo.CPOTrainer):
        pass

    settings = replace(PRESETS["simpo"], target_margin=gamma)
    trainer = Trainer(alpha=0.0, loss_type="simpo", simpo_gamma=gamma, beta=settings.beta)
    samples = Samples()
    chosen, rejected = (samples.policy_BT.sum(1) / COUNTS).chunk(2)
    samples.check(trainer.cpo_loss(chosen, rejected)[0].mean(), settings)


@pytest.mark.parametrize(
    ("loss_type", "changes"),
    [
        ("kto", {"samples_from": "policy", "reference_point": "samples"}),
        ("kto", {"reference_point": "samples", "desirable_weight": 1.3, "beta": 0.6}),
        ("apo_zero_unpaired", {"reference_point": "zero", "undesirable_weight": 0.7}),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_labels_as_the_kto_trainer(
    loss_type: str, changes: dict[str, object], shift: float
) -> None:
    settings, samples = replace(PRESETS["kto"], **changes), Samples()  # type: ignore[arg-type]
    samples.reference_B = samples.reference_B - shift  # the KL on either side of its bound

    class Trainer(Bare, trl.KTOTrainer):
        def _compute_kl_logps(self, model: object, batch: object) -> Tensor:
            return samples.policy_BT.detach().sum(1)

    trainer = Trainer(
        loss_type=loss_type,
        calculate_KL=loss_type == "kto",
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
    )
    references = {"ref_logps": samples.reference_B, "ref_KL_logps": samples.reference_B}
    inputs = {**samples.inputs(), **references, "label": GOOD}
    samples.check(trainer._compute_loss(samples.model, inputs, False), settings)


def test_a_teacher_as_the_distillation_trainer() -> None:
    """With the weights that its method adds switched off (gamma 0)."""
    iw_opd = pytest.importorskip("trl.experimental.iw_opd")

    class Trainer(Bare, iw_opd.IWOPDTrainer):
        pass

    trainer = Trainer(temperature=1.0, iw_opd_gamma=0.0, iw_opd_epsilon=1e-8)
    generator = torch.Generator().manual_seed(3)
    shape = (len(COUNTS), WIDTH, 11)
    student_BTV, teacher_BTV = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    ids_BT = torch.randint(11, shape[:2], generator=generator)
    mask_BT = torch.arange(WIDTH) < COUNTS[:, None]
    student_BTV.requires_grad_()
    log_BTV = student_BTV.log_softmax(-1)
    logprob_BT = log_BTV.gather(-1, ids_BT[..., None])[..., 0]
    teacher_BT = teacher_BTV.log_softmax(-1).gather(-1, ids_BT[..., None])[..., 0]
    labels_BT = torch.where(mask_BT, ids_BT, -100)
    expected = trainer._compute_iw_opd_loss(
        student_BTV, ids_BT, labels_BT, teacher_BT, logprob_BT.detach()
    )
    (wanted_BTV,) = torch.autograd.grad(expected, student_BTV)
    settings = PRESETS["distillation"]
    columns = {"advantage": torch.zeros(len(COUNTS)).double(), "keep": torch.ones(len(COUNTS))}
    batch = flatten(
        settings,
        COUNTS,
        {name: column.double() for name, column in columns.items()},
        denominators(COUNTS, row_weight(columns)),
        behaviour_T=logprob_BT.detach()[mask_BT],
        reference_T=teacher_BT[mask_BT],
    )
    staged = token_stage(settings, batch, lambda moments: moments)
    loss = Objective(settings).loss(staged, {"logprob": logprob_BT[mask_BT]}).loss
    (found_BTV,) = torch.autograd.grad(loss, student_BTV)
    torch.testing.assert_close(found_BTV, wanted_BTV, rtol=1e-10, atol=1e-13)
    assert found_BTV.abs().max() > 1e-3
