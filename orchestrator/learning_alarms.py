"""Warnings about what is learnt: told once a stage, with their cause and what to do.

Pure functions over the lines that a stage has written to `metrics.jsonl`, each with its thresholds
and why they are what they are. What goes wrong with machines and queues is
`manta.orchestrator.alarms`'.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Final, TypeAlias

from manta.orchestrator.alarms import Alarm
from manta.orchestrator.metrics import ACCURACY, ENTROPY, LENGTH, REWARD, ZERO_VARIANCE
from manta.orchestrator.outcomes import ALL_RIGHT, ALL_WRONG, PASS_AT_1

ESS: Final = "learner/ess"
TRUNCATED: Final = "length/truncated_share"
_CLIPPED = ("learner/clip_fraction_low", "learner/clip_fraction_high")
_REWARD_STD: Final = "reward/std"

STEPS = 10
"""Steps that are averaged: what one step's samples did by chance is no news."""
MANY_STEPS = 10
"""Steps' worth of groups filtered for one step: dynamic sampling as published gives up here."""


class History:
    """The lines of one stage, name by name."""

    def __init__(self, lines: Iterable[Mapping[str, float]] = ()) -> None:
        self._values: dict[str, list[float]] = {}
        self._lines: dict[str, list[int]] = {}
        self._count = 0
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, float]) -> None:
        for name in _READ:
            value = line.get(name)
            if value is not None and math.isfinite(value):
                self._values.setdefault(name, []).append(value)
                self._lines.setdefault(name, []).append(self._count)
        self._count += 1

    def values(self, name: str) -> Sequence[float]:
        """All finite ones, the newest last."""
        return self._values.get(name, ())

    def last(self, name: str, count: int = STEPS) -> Sequence[float]:
        """The newest `count`; fewer where there are no more."""
        return self.values(name)[-count:]

    def line(self, name: str, index: int) -> int:
        """Which line the value `index` of `name` stood in."""
        return self._lines[name][index]

    def between(self, name: str, start: int, end: int) -> Sequence[float]:
        """The values in lines `start` to `end`, the latter left out."""
        lines = self._lines.get(name, [])
        return self.values(name)[bisect_left(lines, start) : bisect_left(lines, end)]


def entropy_collapse(history: History) -> Alarm | None:
    """The mean entropy of the last 10 steps is below 5% of that of the stage's first 10, while less
    than 90% of the samples are right.

    Reward is bought with entropy, and what is left to gain ends with it: runs of many models follow
    `R = b - a exp(H)`, having spent 73% of the entropy for three quarters of the gain (Cui et al.,
    arXiv 2505.22617). With 95% gone samples hardly differ any more. A policy that is nearly always
    right may be certain; one that starts below 0.02 nats a token has nothing to lose.
    """
    values = history.values(ENTROPY)
    if len(values) < 3 * STEPS:
        return None
    start, now = fmean(values[:STEPS]), fmean(values[-STEPS:])
    right = history.last(PASS_AT_1)
    if start < 0.02 or now >= 0.05 * start or (right and fmean(right) >= 0.9):
        return None
    return Alarm(
        "entropy collapse",
        f"the policy's entropy fell from {start:.3g} to {now:.2g} nats a token",
        "its samples hardly differ any more, so that there is little left to learn from",
        "lower the learning rate, raise algorithm.clip_high (0.28 in DAPO) or entropy_coef where "
        "the loss has them, or go back to an earlier checkpoint",
    )


def length_blow_up(history: History) -> Alarm | None:
    """In 50 steps the mean length has at least doubled while the reward has not risen by more than
    two standard errors of the means of 10 steps; or the share of samples that a bound ended is 25%
    over the last 10 steps, and 15 points above that of the stage's first 10.

    Longer answers that are worth more are learning, as in DeepSeek-R1 (arXiv 2501.12948), where
    doubling takes hundreds of steps. Samples that are cut get a reward for what they did not come
    to say: noise, which DAPO (arXiv 2503.14476, section 3.4) found to unsettle training.
    """
    lengths, cut = history.values(LENGTH), history.values(TRUNCATED)
    cause = ""
    if len(lengths) >= 6 * STEPS and _doubled(history) and not _has_risen(history):
        before, now = fmean(lengths[-6 * STEPS : -5 * STEPS]), fmean(lengths[-STEPS:])
        cause = f"from {before:.0f} to {now:.0f} tokens in {5 * STEPS} steps, at no gain in reward"
    elif len(cut) >= 3 * STEPS:
        start, now = fmean(cut[:STEPS]), fmean(cut[-STEPS:])
        if now >= 0.25 and now >= start + 0.15:
            cause = f"{now:.0%} of them are cut off, {start:.0%} were in the stage's first steps"
    if not cause:
        return None
    return Alarm(
        "length blow-up",
        f"answers grow: {cause}",
        "what is longer is not worth more, or ends before it is worth anything",
        "look at the samples; mean over tokens (algorithm.aggregation: token_mean or "
        "sequence_sum_constant), reward length (component `length`), or bound it (rollout.cap)",
    )


def reward_without_accuracy(history: History) -> Alarm | None:
    """Over the last 6 evaluations the mean reward of the samples has risen by half a standard
    deviation or more, and held-out accuracy not at all.

    The reward is the mean over the steps before the second of these evaluations (back to the one
    before the first, if there is one) and over those after the second last, the deviation that
    among the earlier samples; accuracy the mean of the first two and of the last two. Half a
    deviation is what a component of 0 and 1 gains between 50% and 75% right: accuracy on 64 tasks
    would show that at four standard errors. Nothing is said of an accuracy of 98% and more.
    """
    accuracies = history.values(ACCURACY)
    if len(accuracies) < 6:
        return None
    first = len(accuracies) - 6
    start = history.line(ACCURACY, first - 1) if first else 0
    early_end = history.line(ACCURACY, first + 1)
    late_start = history.line(ACCURACY, first + 4)
    early = history.between(REWARD, start, early_end)
    late = history.between(REWARD, late_start, history.line(ACCURACY, first + 5) + 1)
    deviations = history.between(_REWARD_STD, start, early_end)
    if not early or not late or not deviations:
        return None
    before, now = fmean(accuracies[first : first + 2]), fmean(accuracies[-2:])
    rise = fmean(late) - fmean(early)
    if before >= 0.98 or now > before or rise < max(0.5 * fmean(deviations), 1e-6):
        return None
    return Alarm(
        "reward without accuracy",
        f"the reward rose from {fmean(early):.3g} to {fmean(late):.3g} over 6 evaluations, "
        f"held-out accuracy went from {before:.1%} to {now:.1%}",
        "the policy learns what the reward pays for and evaluation does not, or its training tasks "
        "by heart",
        "look at samples of high reward; name the true reward (reward.gold), raise kl.coef, stop "
        "earlier, or train on more tasks",
    )


def drifting_ratios(history: History) -> Alarm | None:
    """In each of the last 5 steps the effective sample size of the importance weights is below half
    of the tokens, or more than half of them are clipped.

    At half, an estimate is as noisy as one from half of the samples (Kong, "A note on importance
    sampling using standardized weights", 1992), and its weights come from few tokens. Engines that
    differ from the learner by rounding have 0.99 and more. Published runs clip a few percent of the
    tokens, GSPO, which clips most, 15% (arXiv 2507.18071, section 5.2).
    """
    sizes = history.last(ESS, 5)
    sides = [history.last(name, 5) for name in _CLIPPED]
    clipped = [low + high for low, high in zip(*sides, strict=False)]
    if len(sizes) == 5 and max(sizes) < 0.5:
        what = f"the effective sample size is {fmean(sizes):.0%} of the tokens"
    elif len(clipped) == 5 and min(clipped) > 0.5:
        what = f"{fmean(clipped):.0%} of the tokens are clipped, and teach nothing"
    else:
        return None
    return Alarm(
        "ratio drift",
        what,
        "the policy that learns has moved far from the one that sampled",
        "lower the learning rate, updates_per_step, epochs_per_step or rollout.max_staleness; "
        "where engine and learner differ (mismatch/), set algorithm.proximal: learner with "
        "off_policy: {correction: truncate, high: 2}",
    )


def idle_groups(history: History) -> Alarm | None:
    """Over the last 10 steps four of five groups, or more, have equal rewards; in the median, not
    before the stage's 20th step.

    Their advantages are 0: the gradient comes from a fifth of the samples, and is 2.2 times as
    noisy. The share grows in a run that learns well, too, as tasks are solved (DAPO, arXiv
    2503.14476, section 3.2): below four of five nothing is said.
    """
    shares = history.values(ZERO_VARIANCE)
    if len(shares) < 2 * STEPS or median(shares[-STEPS:]) < 0.8:
        return None
    right, wrong = (history.last(name) for name in (ALL_RIGHT, ALL_WRONG))
    cause, advice = "whatever the samples of a prompt say, it is rewarded alike", "harder or easier"
    if right and fmean(right) > 2 * fmean(wrong):
        cause, advice = f"{fmean(right):.0%} of the groups are all right", "harder"
    elif wrong and fmean(wrong) > 2 * fmean(right):
        cause, advice = f"{fmean(wrong):.0%} of the groups are all wrong", "easier"
    return Alarm(
        "idle groups",
        f"{median(shares[-STEPS:]):.0%} of the groups have equal rewards, and teach nothing",
        cause,
        f"give it {advice} tasks or more samples of each, or let others take the places of such "
        "groups (algorithm.filters: [zero_variance], with a loss that takes filters)",
    )


_Function: TypeAlias = Callable[[History], Alarm | None]

LEARNING_ALARMS: tuple[_Function, ...] = (
    entropy_collapse,
    length_blow_up,
    reward_without_accuracy,
    drifting_ratios,
    idle_groups,
)

_READ = (
    *(ENTROPY, ESS, TRUNCATED, *_CLIPPED, _REWARD_STD, ACCURACY, LENGTH, REWARD),
    *(ALL_RIGHT, ALL_WRONG, PASS_AT_1, ZERO_VARIANCE),
)


class LearningAlarms:
    """Over the lines of one stage after the other."""

    def __init__(self, trusts_logprobs: bool = True) -> None:
        """Not `trusts_logprobs`: the engine makes them up, and ratios mean nothing."""
        self._trusts_logprobs = trusts_logprobs
        self.enter()

    def enter(
        self,
        lines: Iterable[Mapping[str, float]] = (),
        told: Iterable[str] = (),
        can_idle: bool = True,
    ) -> None:
        """A stage begins, or goes on: `lines` and kinds `told` of it are from an earlier life.
        Without `can_idle` equal rewards of a prompt's samples teach as others do."""
        self._history, self._told = History(lines), set(told)
        needs: dict[_Function, bool] = {
            drifting_ratios: self._trusts_logprobs,
            idle_groups: can_idle,
        }
        self._functions = [each for each in LEARNING_ALARMS if needs.get(each, True)]

    def line(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """What the stage's next line gives reason to tell, and was not told in it."""
        self._history.add(metrics)
        found = [each(self._history) for each in self._functions]
        new = [alarm for alarm in found if alarm is not None and alarm.kind not in self._told]
        self._told.update(alarm.kind for alarm in new)
        return new


def hardly_filled(step: int, kept: int, wanted: int, reasons: Sequence[str]) -> Alarm:
    """Of a step for which groups were filtered for `reasons`, and few stayed."""
    counts = Counter(reason.partition(":")[0] for reason in reasons).most_common()
    return Alarm(
        "filtered groups",
        f"{len(reasons)} groups were filtered for step {step}, which has {kept} of {wanted}",
        ", ".join(f"{name} left {count} out" for name, count in counts),
        "give it tasks that it sometimes solves, more samples of each, or milder algorithm.filters",
    )


def nothing_left(epoch: int) -> Alarm:
    """Of an epoch that the curriculum would have left without a task."""
    return Alarm(
        "empty epoch",
        f"the curriculum would have left every task out of epoch {epoch}, and takes them all",
        "no task's pass rate is within curriculum.low to curriculum.high any more",
        "end the stage, give it tasks that it sometimes solves, or widen low and high",
    )


def _doubled(history: History) -> bool:
    lengths = history.values(LENGTH)
    return fmean(lengths[-STEPS:]) >= 2 * fmean(lengths[-6 * STEPS : -5 * STEPS])


def _has_risen(history: History) -> bool:
    """The reward, where there is one."""
    rewards = history.values(REWARD)
    if len(rewards) < 6 * STEPS:
        return False
    before, now = rewards[-6 * STEPS : -5 * STEPS], rewards[-STEPS:]
    error = math.sqrt((stdev(before) ** 2 + stdev(now) ** 2) / STEPS)
    return fmean(now) - fmean(before) > max(2 * error, 1e-9)
