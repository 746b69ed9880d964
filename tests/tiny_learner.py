"""One rank of a learner over a tiny model, with what stands beside the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.residents import Resident, build_residents
from manta.actors.backends.settings import LearnerSettings
from manta.actors.collectives import alone, sum_over
from manta.actors.learning import Learner
from manta.actors.rows import Row
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import ScoredGroup
from manta.envs.step_records import StepPlan
from tiny import VOCABULARY, rows_by_index, tiny_model, tiny_spec


class TinyLearner:
    """Rank and number of ranks are `ranks`. Residents are moved by `spread` from where they start,
    so that they say something."""

    def __init__(
        self,
        algorithm: AlgorithmSettings,
        groups: Sequence[ScoredGroup],
        plan: StepPlan,
        *,
        temperature: float,
        spread: float,
        ranks: tuple[int, int] = (0, 1),
        group: dist.ProcessGroup | None = None,
        dtype: torch.dtype = torch.float32,
        **values: object,
    ) -> None:
        self.algorithm, self.groups, self.plan = algorithm, groups, plan
        settings = LearnerSettings(**values)  # type: ignore[arg-type]
        self.policy = tiny_model()
        self.residents: Mapping[str, Resident] = build_residents(
            algorithm, settings, tiny_spec(), VOCABULARY, self.policy
        )
        generator = torch.Generator().manual_seed(1)
        for resident in self.residents.values():
            for parameter in resident.module.parameters():
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * spread)
            resident.module.to(dtype)
        self.policy.to(dtype)
        self.backend = PlainBackend(self.policy, settings, group, self.residents)
        self.learner = Learner(
            self.backend,
            algorithm,
            settings.tokens_per_micro_batch,
            temperature,
            *ranks,
            all_reduce=alone if group is None else sum_over(group),
        )

    def rows(self, updates: int) -> dict[int, Row]:
        """This rank's of a step of `updates` updates."""
        needed = self.learner.rows_needed(self.plan, updates).tolist()
        whole = rows_by_index(self.plan, self.groups)
        return {index: whole[index] for index in needed}
