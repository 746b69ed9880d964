"""The same corrected GRPO losses as TRL: its own code weighs, masks and averages, ours too."""

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import denominators, row_weight
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import OffPolicySettings
from manta.algorithms.settings import AlgorithmSettings
from tests.unit.algorithms.test_trl_parity import AGGREGATIONS, Arguments, OneProcess

trl = pytest.importorskip("trl", reason="TRL is not installed: make test installs it")

COUNTS = [5, 2, 7, 1]
WIDTH = 7
"""Columns of TRL's padded tensors."""

MODES = {
    "token_truncate": OffPolicySettings("truncate", "token", None, 1.3),
    "token_mask": OffPolicySettings("mask", "token", 0.75, 1.3),
    "sequence_truncate": OffPolicySettings("truncate", "sequence", None, 1.1),
    "sequence_mask": OffPolicySettings("mask", "sequence", 0.3, 1.1),
}
"""What TRL calls a mode, and our setting for it."""


class GenerationArguments(Arguments):
    """And what it reads of them when it prepares a batch."""

    per_device_train_batch_size = len(COUNTS)
    gradient_accumulation_steps = 1
    gradient_checkpointing_kwargs = None


class OneCpu(OneProcess):
    device = torch.device("cpu")
    process_index = 0


class GivenModel(torch.nn.Identity):
    is_gradient_checkpointing = False


class PadToken:
    pad_token_id = 0


class Samples:
    """Random log-probs of ragged rows under the three policies."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        shape = (3, len(COUNTS), WIDTH)
        logprobs = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.4 - 2
        self.current_BT, self.proximal_BT, behaviour_BT = logprobs
        self.behaviour_BT = behaviour_BT.float().double()  # TRL takes it in as float32
        self.mask_BT = torch.arange(WIDTH) < torch.tensor(COUNTS)[:, None]


def trl_loss(loss_type: str, mode: str, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
    """TRL's loss, and the batch that it made of the samples: GRPOTrainer with its own code for
    importance weights and loss, but log-probs, tokens and rewards given."""
    told = MODES[mode]

    class Trainer(trl.GRPOTrainer):
        def __init__(self) -> None:
            self.loss_type = loss_type
            self.beta, self.epsilon_low, self.epsilon_high = 0.0, 0.2, 0.28
            self.max_completion_length = 11
            self.importance_sampling_level = "token"
            self.top_entropy_quantile = 1.0
            self.off_policy_mask_threshold = None
            self.aux_loss_enabled = self._entropy_bonus_enabled = False
            self.use_vllm = self.vllm_importance_sampling_correction = True
            self.vllm_importance_sampling_mode = mode
            self.vllm_importance_sampling_clip_min = told.low
            self.vllm_importance_sampling_clip_max = told.high
            self.current_gradient_accumulation_steps = self.num_iterations = 1
            self.args = GenerationArguments()
            self.model = GivenModel().train()
            self.accelerator = OneCpu()
            self._tokenizer = PadToken()
            self._metrics = {"train": defaultdict(list)}
            self._logs = defaultdict(list)
            self._logs.update(rewards=defaultdict(list), extra=defaultdict(list))
            self._pending_extra_logs, self._pending_metrics = {}, {}
            self.environment_factories = self.environments = self.tools = None
            self.pad_to_multiple_of = None
            self.mask_truncated_completions = False
            self.num_generations = len(COUNTS)
            self.multi_objective_aggregation, self.scale_rewards = "sum_then_normalize", "group"
            self.reward_weights = torch.ones(1)
            self.reward_func_names = ["reward"]

        def _generate(self, prompts: list[str]) -> tuple[object, ...]:
            ids = [list(range(1, count + 1)) for count in COUNTS]
            sampled = [
                row[:count].tolist()
                for row, count in zip(samples.behaviour_BT, COUNTS, strict=True)
            ]
            return [[1]] * len(prompts), ids, None, ids, sampled, {}, None, None

        def _get_per_token_logps_and_entropies(
            self, *_: object, **__: object
        ) -> tuple[Tensor, Tensor, None]:
            """Asked without gradients before the update, with them during it."""
            logprob_BT = samples.current_BT if torch.is_grad_enabled() else samples.proximal_BT
            return logprob_BT, torch.zeros_like(logprob_BT), None

        def _calculate_rewards(self, *_: object) -> Tensor:
            return torch.tensor([[1.0], [0.0], [0.3], [-2.0]])

    trainer = Trainer()
    batch = trainer._generate_and_score_completions([{"prompt": "?"} for _ in COUNTS])
    return trainer._compute_loss(None, batch), batch


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("loss_type", list(AGGREGATIONS))
def test_loss_and_gradient_equal_trl(loss_type: str, mode: str) -> None:
    samples = Samples()
    samples.current_BT.requires_grad_()
    expected, batch = trl_loss(loss_type, mode, samples)
    (expected_gradient,) = torch.autograd.grad(expected, samples.current_BT)
    algorithm = AlgorithmSettings(
        loss_type,
        aggregation=AGGREGATIONS[loss_type],  # type: ignore[arg-type]
        constant_length=11,
        clip_low=0.2,
        clip_high=0.28,
        proximal="learner",
        off_policy=MODES[mode],
    )
    mask_BT, counts_R = samples.mask_BT, torch.tensor(COUNTS)
    columns = {"advantage": batch["advantages"].double(), "keep": torch.ones(4).double()}
    ours = flatten(
        algorithm,
        counts_R,
        columns,
        denominators(counts_R, row_weight(columns)),
        behaviour_T=samples.behaviour_BT[mask_BT],
        proximal_T=samples.proximal_BT[mask_BT],
    )
    terms = Objective(algorithm).loss(ours, {"logprob": samples.current_BT[mask_BT]})
    (gradient,) = torch.autograd.grad(terms.loss, samples.current_BT)
    torch.testing.assert_close(terms.loss, expected, rtol=1e-7, atol=1e-9, check_dtype=False)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)
    assert gradient.abs().max() > 1e-3
    weight_BT = batch["importance_sampling_ratio"].expand(mask_BT.shape)[mask_BT]
    bound = 0.0 if MODES[mode].correction == "mask" else MODES[mode].high
    assert 0 < (weight_BT == bound).sum() < len(weight_BT), "some, not all, reach the bound"
