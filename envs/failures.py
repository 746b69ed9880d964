"""The kinds of failure that a caller must tell apart.

The policy being wrong is no failure: its reward says so. What is left is the world breaking
(`WorldBroke`: try again elsewhere, then drop and replace, never score 0) and our own faults (any
other exception: the run ends). This file owns the names, not what is done about them.
"""


class WorldBroke(RuntimeError):
    """An engine, sandbox, judge or node failed; the attempt can be retried."""


class WorkerLost(WorldBroke):
    """A worker that was asked is gone: what it was asked is hardly to blame."""


class GroupBroken(WorldBroke):
    """Too few samples of a group are whole."""


class RewardFailed(RuntimeError):
    """A reward component raised: a bug in the component or in what it was given."""
