"""The same losses as TRL, on random tensors, through TRL's own loss function.

Two differences have names: TRL's `epsilon_high` of CISPO is the bound itself (ours is its distance
from 1), and its KL is not weighted by the ratio here (`use_bias_correction_kl`).
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import denominators, row_weight
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import KlSettings
from manta.algorithms.settings import AlgorithmSettings

trl = pytest.importorskip("trl", reason="TRL is not installed: make test installs it")

COUNTS = [5, 2, 7, 1]
WIDTH = 7
"""Columns of TRL's padded tensors."""

AGGREGATIONS = {
    "grpo": "sequence_mean",
    "dapo": "token_mean",
    "dr_grpo": "sequence_sum_constant",
}
"""What TRL calls a loss type, and the aggregation that it stands for."""


@dataclass(frozen=True)
class Told:
    """What TRL is told, and what we are."""

    loss_type: str
    ours: dict[str, object]
    level: str = "token"
    epsilon_high: float = 0.28
    delta: float | None = None


CASES = {
    **{name: Told(name, {"aggregation": mean}) for name, mean in AGGREGATIONS.items()},
    # The mean over a micro-batch's tokens; here the micro-batch is the update.
    "bnpo": Told("bnpo", {"aggregation": "token_mean"}),
    "dual clip": Told("dapo", {"dual_clip": 1.5}, delta=1.5),
    "gspo": Told("grpo", {"loss": "gspo", "aggregation": "sequence_mean"}, "sequence", 0.1),
    "cispo": Told("cispo", {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.5}, epsilon_high=1.5),
    "sapo": Told("sapo", {"loss": "sapo", "aggregation": "sequence_mean", "tau_negative": 1.25}),
}


@dataclass
class Arguments:
    """What TRL's loss reads of its training arguments."""

    use_bias_correction_kl: bool = False
    delta: float | None = None
    steps_per_generation: int = 1
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.25  # TRL rounds it to float32, which 1.05 would not survive


class OneProcess:
    """What TRL's loss asks of its accelerator."""

    num_processes = 1

    def gather(self, values: Tensor) -> Tensor:
        return values

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return values


def trl_loss(told: Told, logprob_BT: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """`GRPOTrainer._compute_loss` with the log-probs given instead of a model to compute them."""

    class Loss(trl.GRPOTrainer):
        def __init__(self) -> None:
            self.loss_type = told.loss_type
            self.beta, self.epsilon_low, self.epsilon_high = 0.04, 0.2, told.epsilon_high
            self.max_completion_length = 11
            self.importance_sampling_level = told.level
            self.top_entropy_quantile = 1.0
            self.off_policy_mask_threshold = None
            self.aux_loss_enabled = self.use_vllm = self._entropy_bonus_enabled = False
            self.current_gradient_accumulation_steps = 1
            self.args = Arguments(delta=told.delta)
            self.model = torch.nn.Identity().train()
            self.accelerator = OneProcess()
            self._metrics = {"train": defaultdict(list)}

        def _get_per_token_logps_and_entropies(
            self, *_: object, **__: object
        ) -> tuple[Tensor, Tensor, None]:
            return logprob_BT, torch.zeros_like(logprob_BT), None

    result = Loss()._compute_loss(None, inputs)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradient_equal_trl(name: str) -> None:
    told = CASES[name]
    generator = torch.Generator().manual_seed(0)
    logprob_BT, old_BT, reference_BT = (
        torch.randn(3, len(COUNTS), WIDTH, generator=generator, dtype=torch.float64) * 0.4 - 2
    )
    advantage_B = torch.randn(len(COUNTS), generator=generator, dtype=torch.float64)
    counts_R = torch.tensor(COUNTS)
    mask_BT = torch.arange(WIDTH) < counts_R[:, None]
    logprob_BT.requires_grad_()
    ids_BT = torch.zeros(len(COUNTS), WIDTH, dtype=torch.int64)
    expected = trl_loss(
        told,
        logprob_BT,
        {
            "prompt_ids": ids_BT,
            "prompt_mask": torch.ones_like(ids_BT),
            "completion_ids": ids_BT,
            "completion_mask": mask_BT.long(),
            "advantages": advantage_B,
            "old_per_token_logps": old_BT,
            "ref_per_token_logps": reference_BT,
            "num_items_in_batch": counts_R.sum(),
        },
    )
    (expected_gradient,) = torch.autograd.grad(expected, logprob_BT)

    algorithm = AlgorithmSettings(
        name=name,
        constant_length=11,
        clip_low=0.2,
        clip_high=told.epsilon_high,
        kl=KlSettings(coef=0.04, estimator="k3"),
    )
    algorithm = replace(algorithm, **told.ours)  # type: ignore[arg-type]
    columns = {"advantage": advantage_B, "keep": torch.ones(len(COUNTS), dtype=torch.float64)}
    batch = flatten(
        algorithm,
        counts_R,
        columns,
        denominators(counts_R, row_weight(columns)),
        behaviour_T=old_BT[mask_BT],
        reference_T=reference_BT[mask_BT],
    )
    loss = Objective(algorithm).loss(batch, {"logprob": logprob_BT[mask_BT]}).loss
    (gradient,) = torch.autograd.grad(loss, logprob_BT)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)
    assert gradient.abs().max() > 1e-3
