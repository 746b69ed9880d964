"""A rule for whole answers, asked of every turn of the policy."""

from __future__ import annotations

from manta.envs.chat_template import POLICY
from manta.envs.protocols import Services
from manta.envs.records import Detail, Json, Span, Task, Trajectory
from manta.envs.registry import build
from manta.envs.rewards.artifact import ArtifactReward
from manta.envs.rewards.scope import at_once
from manta.envs.rewards.version import version_of


class ByTurn:
    """A span `turn` over each turn of the policy, its value what `rule` gives the turn's text; the
    component's own value is their mean. Turns to which the rule does not apply are left out.

    `rule` is a reward that looks at the text alone (such as `exact` or `format`), by registry name
    or `module:attribute`; the other options are the rule's. Raises ValueError for other rewards.
    """

    rewards_within = True

    def __init__(self, rule: str, **options: Json) -> None:
        made = build("reward", rule, options)
        if not isinstance(made, ArtifactReward):
            raise ValueError(
                f"rule {rule!r} does not judge a text by itself: choose one that does, such as "
                "exact, expression or format"
            )
        self._rule = made
        self.version = version_of("by_turn", {"rule": made.version}, type(self))

    @at_once
    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> Detail | None:
        turns = [turn for turn in trajectory.turns if turn.role == POLICY and turn.start < turn.end]
        spans = []
        for turn in turns:
            # The last one's words are the artifact, whether or not there are others
            text = trajectory.artifact if turn is turns[-1] else turn.text
            value = self._rule.judge(task, text)
            if value is not None:
                spans.append(Span("turn", turn.start, turn.end, value))
        if not spans:
            return None
        return Detail(sum(span.value for span in spans) / len(spans), tuple(spans))
