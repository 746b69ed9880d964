"""Flattening rows: indices, weights and advantages by hand."""

import pytest
import torch

from manta.algorithms.aggregate import Denominators
from manta.algorithms.flatten import flatten
from manta.algorithms.presets import PRESETS

COUNTS_R = torch.tensor([2, 0, 1])
COLUMNS = {"advantage": torch.tensor([0.5, 9.0, -1.0]), "keep": torch.tensor([1.0, 1.0, 1.0])}
UPDATE = Denominators(total_tokens=12.0, total_rows=4.0)  # these rows are a part of the update


def test_by_hand() -> None:
    behaviour_T = torch.tensor([-1.0, -2.0, -3.0])
    batch = flatten(PRESETS["grpo"], COUNTS_R, COLUMNS, UPDATE, behaviour_T=behaviour_T)
    assert batch.row_T.tolist() == [0, 0, 2]
    assert batch.weight_T.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4])
    assert batch.mean_T.tolist() == pytest.approx([1 / 12] * 3)
    assert batch.advantage_T.tolist() == [0.5, 0.5, -1.0]
    assert batch.behaviour_T is behaviour_T
    assert batch.proximal_T is None and batch.reference_T is None
    assert batch.weight_T.dtype == batch.mean_T.dtype == torch.float32


def test_advantages_of_the_token_stage_are_taken_as_they_are() -> None:
    advantage_T = torch.tensor([7.0, 8.0, 9.0])
    batch = flatten(PRESETS["grpo"], COUNTS_R, COLUMNS, UPDATE, advantage_T=advantage_T)
    assert batch.advantage_T is advantage_T


def test_no_rows() -> None:
    columns = {name: column[:0] for name, column in COLUMNS.items()}
    batch = flatten(PRESETS["sft"], COUNTS_R[:0], columns, UPDATE)
    assert batch.row_T.tolist() == batch.weight_T.tolist() == batch.advantage_T.tolist() == []


@pytest.mark.parametrize(
    "name", ["behaviour_T", "proximal_T", "reference_T", "advantage_T", "same_version_T"]
)
def test_a_tensor_of_another_length_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} has shape \(4,\), the 3 rows have 3 trained"):
        flatten(PRESETS["grpo"], COUNTS_R, COLUMNS, UPDATE, **{name: torch.zeros(4)})
