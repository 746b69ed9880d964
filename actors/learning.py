"""The learner: one rank's part in training on a step's plan, as a plain object.

Owns the order of passes, updates and epochs, and what a step reports. How rows are shared out is
`manta.actors.sharding`, what the loss is `manta.algorithms.objective`, how parameters move the
backend's. It neither fetches groups nor publishes weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from manta.actors.backends.protocol import POLICY, Backend, HoldsResidents, Loss, Want
from manta.actors.backends.schedule import NO_RESIDENTS, ResidentRates
from manta.actors.backends.settings import PROCESS
from manta.actors.collectives import alone
from manta.actors.coupled_update import CoupledUpdate
from manta.actors.histogram import Histogram
from manta.actors.micro_batches import micro_batches
from manta.actors.plan_tensors import denominators_of, places_of
from manta.actors.process_step import NO_PROCESS, ProcessReport, ProcessStep
from manta.actors.rows import Row
from manta.actors.sharding import IntArray, kept_rows, mini_batches, shard
from manta.actors.step_tokens import StepTokens
from manta.algorithms.catalogue import LOSS_KINDS
from manta.algorithms.kl_control import KlControl
from manta.algorithms.mismatch import MismatchTally
from manta.algorithms.objective import Objective
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.step_tally import StepTally
from manta.algorithms.tokens import LossTerms, vocabulary_mean
from manta.envs.step_records import StepPlan


class Learner:
    """Rank `rank` of `world_size`; `all_reduce` sums small CPU tensors over the ranks.

    `temperature` is the rollout's. Denominators come from the whole plan, so that neither the
    number of ranks nor the micro-batches change what is learnt. `attention_tokens`: see
    `manta.actors.sharding.shard`. `seed` is the run's, of what a step draws at random.
    """

    def __init__(
        self,
        backend: Backend,
        algorithm: AlgorithmSettings,
        tokens_per_micro_batch: int,
        temperature: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
        all_reduce: AllReduce = alone,
        report_entropy: bool = True,
        attention_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        self._backend = backend
        self._algorithm = algorithm
        self._objective = Objective(algorithm, report_entropy)
        self._tokens_per_micro_batch = tokens_per_micro_batch
        self._temperature = temperature
        self._rank = rank
        self._world_size = world_size
        self._all_reduce = all_reduce
        self._attention_tokens = attention_tokens
        self._seed = seed
        self.kl = KlControl(algorithm)
        """What a learner keeps between steps; the rest is the backend's."""
        self._tally = StepTally()
        self.histograms: Mapping[str, Histogram] = {}
        """Of the last step, by name, equal on all ranks; see `manta.algorithms.step_tally`."""

    def rows_needed(self, plan: StepPlan, updates: int) -> IntArray:
        """Indices of this rank's rows in a step of `updates` mini-batches."""
        shares = self._indices(plan, updates)
        return torch.cat([torch.from_numpy(share) for share in shares]).numpy()

    def step(
        self,
        plan: StepPlan,
        rows: Mapping[int, Row],
        epochs: int,
        updates: int,
        learning_rate: float,
        residents: ResidentRates = NO_RESIDENTS,
    ) -> dict[str, float]:
        """Makes `updates` optimizer updates in each of `epochs` passes over the plan's kept rows.

        `rows` holds (at least) this rank's, see `rows_needed`. A mini-batch in which nothing trains
        is left out on every rank. Returns, equal on all ranks: means over the applied updates of
        the objective's sums, `loss` and `grad_norm`; maxima over updates of names in `_max`; the
        counts `tokens` and `rows` (kept rows and their trained tokens), `updates` (applied) and
        `skipped_updates` (not finite); and how far engine and learner disagree before the policy
        moves (`manta.algorithms.mismatch`): over the tokens of the step where a pass has recomputed
        their log-probs, else over those of the first update. Where the loss has a ratio also how
        ratios and advantages are distributed (`manta.algorithms.step_tally`). With a critic also
        `critic/value_mean`, `critic/return_mean` and `critic/explained_variance` of its values
        before the first update, and with an implicit reward model `process/NAME`
        (`manta.actors.process_step`), whose own skipped updates are counted too. Where `residents`
        says so the policy is frozen: it stays as it is to the bit, and what is not the residents'
        is not reported. A loss that couples rows reports `pairs/NAME` or `labels/NAME`, means over
        its units before each update. A KL coefficient that follows a target reports `kl/coef` and
        `kl/measured` (`manta.algorithms.kl_control`).

        Raises ValueError where `rows` lacks one of this rank's rows, or a row lacks log-probs that
        the algorithm needs.
        """
        self._objective = replace(self._objective, settings=self.kl.settings)
        shares = self._shares(plan, rows, updates)
        mine = [row for share in shares for row in share]
        parts = list(zip(shares, mini_batches(plan, updates), strict=True))
        process = self._process(plan, parts, residents)
        tokens = self._step_tokens(plan, mine, epochs * updates, residents, process.reward_T)
        rates = _rates(learning_rate, residents)
        tally = MismatchTally(self._algorithm.off_policy)
        is_whole = tokens.tally(tally)
        self._tally = StepTally()
        if LOSS_KINDS[self._algorithm.loss].uses_advantages:
            tokens.tally_advantages(self._tally)
        train = self._coupled if self._algorithm.is_coupled else self._update
        reports: list[dict[str, float]] = []
        for share, whole in parts * epochs:
            if plan.num_tokens_N[whole].any():
                first = None if is_whole or reports else tally
                reports.append(train(plan, whole, tokens, share, rates, first))
        return {
            **_over_updates(reports, process.skipped_updates),
            **self._counts(plan),
            **process.figures,
            **self._distributions(),
            **tally.figures(self._all_reduce, self._rank, self._world_size),
            **tokens.value_figures(self._all_reduce),
            **tokens.follow_kl(self.kl, self._all_reduce, residents.is_policy_frozen),
        }

    def _counts(self, plan: StepPlan) -> dict[str, float]:
        kept = kept_rows(plan)
        pairs = {"pairs/count": float(len(plan.pair_P2))} if self._algorithm.is_paired else {}
        tokens = float(plan.num_tokens_N[kept].sum())
        return {"tokens": tokens, "rows": float(len(kept)), **pairs}

    def _distributions(self) -> dict[str, float]:
        told = self._tally.distributions(self._all_reduce)
        self.histograms = {
            name: Histogram(tuple(edges), tuple(counts))
            for name, (edges, counts) in told.histograms.items()
        }
        return told.figures

    def _shares(self, plan: StepPlan, rows: Mapping[int, Row], updates: int) -> list[list[Row]]:
        """This rank's rows with trained tokens, by update."""
        shares = [share.tolist() for share in self._indices(plan, updates)]
        missing = sorted({index for share in shares for index in share} - rows.keys())
        if missing:
            raise ValueError(
                f"step {plan.step}: rank {self._rank} of {self._world_size} was not given its rows "
                f"{missing[:8]}: fetch the groups of rows_needed(plan, updates)"
            )
        return [[rows[index] for index in share if rows[index].num_tokens] for share in shares]

    def _indices(self, plan: StepPlan, updates: int) -> list[IntArray]:
        """Indices of this rank's rows, by update."""
        shares = shard(plan, self._world_size, updates, self._attention_tokens)
        return [ranks[self._rank] for ranks in shares]

    def _process(
        self,
        plan: StepPlan,
        parts: Sequence[tuple[Sequence[Row], IntArray]],
        residents: ResidentRates,
    ) -> ProcessReport:
        """The implicit reward model's part of the step, if there is one."""
        told = self._algorithm.implicit_reward
        if told is None:
            return NO_PROCESS
        step = ProcessStep(
            told,
            self._backend,
            self._temperature,
            self._tokens_per_micro_batch,
            plan,
            self._all_reduce,
        )
        return step.run(parts, residents.by_name[PROCESS])

    def _step_tokens(
        self,
        plan: StepPlan,
        rows: Sequence[Row],
        num_updates: int,
        residents: ResidentRates,
        reward_T: Tensor | None,
    ) -> StepTokens:
        """After one pass for what the step needs to know of policy and critic before it: values
        where there is a critic; log-probs unless the first update is the only one and only the
        ratio asks (there the current log-probs are the proximal ones), or there is no ratio.
        Tokens are chosen before any update, and so ask too."""
        kl = self._algorithm.kl
        charges_kl = kl.placement == "reward" and kl.coef != 0.0
        kind = LOSS_KINDS[self._algorithm.loss]
        is_weighed = kind.ratio is not None or kind.needs_start
        is_weighed |= self._algorithm.off_policy.correction != "none"
        needs_ratio = (num_updates > 1 and is_weighed) or self._algorithm.chooses_tokens
        has_ratio = needs_ratio and not residents.is_policy_frozen
        wants: list[Want] = []
        if self._algorithm.proximal == "learner" and (has_ratio or charges_kl):
            wants.append("logprob")
            if kind.needs_vocabulary:
                wants += ["logsumexp", "vocab_mean"]
        if self._algorithm.critic is not None:
            wants.append("value")
        found = self._backend.evaluate(rows, wants, self._temperature) if wants else {}
        return StepTokens(
            self.kl.settings,
            tuple(plan.coefficients),
            rows,
            found.get("logprob"),
            self._all_reduce,
            found.get("value"),
            vocabulary_mean(found),
            self._seed,
            plan.step,
            places_of(plan, rows),
            reward_T,
        )

    def _update(
        self,
        plan: StepPlan,
        whole: IntArray,
        tokens: StepTokens,
        rows: Sequence[Row],
        rates: Mapping[str, float],
        tally: MismatchTally | None,
    ) -> dict[str, float]:
        """One update of the modules in `rates` on the plan's rows `whole`, of which this rank has
        `rows`; `tally` counts its tokens, under the policy before it."""
        update = denominators_of(plan, whole)
        recompute = self._algorithm.proximal == "learner"
        batches = micro_batches(rows, self._tokens_per_micro_batch)

        def loss(batch: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
            on_cpu = {name: values.cpu() for name, values in stats.items()}
            current_T = on_cpu["logprob"].detach()
            start = (current_T, vocabulary_mean(on_cpu)) if recompute else (None, None)
            of_tokens = tokens.batch(batch, update, *start)
            if tally is not None:
                tally.add(of_tokens, current_T)
            return self._objective.loss(of_tokens, on_cpu, self._tally)

        def critic_loss(batch: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
            on_cpu = {name: values.cpu() for name, values in stats.items()}
            return self._objective.critic_loss(tokens.batch(batch, update), on_cpu)

        if POLICY not in rates:
            return self._apply(batches, ("value",), critic_loss, rates)
        return self._apply(batches, self._objective.wants, loss, rates)

    def _coupled(
        self,
        plan: StepPlan,
        whole: IntArray,
        tokens: StepTokens,
        rows: Sequence[Row],
        rates: Mapping[str, float],
        tally: MismatchTally | None,
    ) -> dict[str, float]:
        """As `_update`, by a loss that couples the rows `whole`."""
        update = denominators_of(plan, whole)
        coupled = CoupledUpdate(self._algorithm, plan, whole, rows, self._tokens_per_micro_batch)
        is_policy = coupled.scalar == "logprob"
        wants = self._objective.wants if is_policy else (coupled.scalar,)
        recompute = self._algorithm.proximal == "learner"
        if coupled.is_split(self._all_reduce):
            asked = self._backend.evaluate(rows, (coupled.scalar,), self._temperature)
            found_T = asked[coupled.scalar].cpu()
            batch = tokens.batch(rows, update, found_T if recompute else None)
            coupled.exchange(batch, found_T, self._all_reduce)

        def loss(batch: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
            on_cpu = {name: values.cpu() for name, values in stats.items()}
            current_T = on_cpu[coupled.scalar].detach()
            of_tokens = tokens.batch(batch, update, current_T if recompute else None)
            terms = coupled.loss(batch, of_tokens, on_cpu)
            if not is_policy:
                return terms
            if tally is not None:
                tally.add(of_tokens, current_T)
            seen = self._objective.seen(of_tokens, on_cpu)
            return replace(terms, sums={**seen, **terms.sums})

        return self._apply(coupled.micro_batches, wants, loss, rates)

    def _apply(
        self,
        batches: Sequence[Sequence[Row]],
        wants: Sequence[Want],
        loss: Loss,
        rates: Mapping[str, float],
    ) -> dict[str, float]:
        if rates.keys() == {POLICY}:
            return self._backend.update(batches, wants, self._temperature, loss, rates[POLICY])
        assert isinstance(self._backend, HoldsResidents)
        return self._backend.update_each(batches, wants, self._temperature, loss, rates)


def _rates(learning_rate: float, residents: ResidentRates) -> dict[str, float]:
    """Of what makes the policy's updates with it; an implicit reward model makes its own."""
    rates = {} if residents.is_policy_frozen else {POLICY: learning_rate}
    return rates | {name: rate for name, rate in residents.by_name.items() if name != PROCESS}


def _over_updates(reports: Sequence[Mapping[str, float]], skipped: int) -> dict[str, float]:
    """`skipped` further updates were not finite."""
    applied = [report for report in reports if not report["skipped_updates"]]
    means: dict[str, float] = {}
    for name in {name: None for report in applied for name in report}:
        values = [report[name] for report in applied if name in report]
        means[name] = max(values) if name.endswith("_max") else math.fsum(values) / len(values)
    counts = {"updates": len(applied), "skipped_updates": len(reports) - len(applied) + skipped}
    return {**means, **{name: float(count) for name, count in counts.items()}}
