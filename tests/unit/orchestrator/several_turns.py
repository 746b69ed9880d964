"""An environment that answers."""

from __future__ import annotations

from manta.envs.families.arithmetic import Arithmetic


class SeveralTurns(Arithmetic):
    single_turn = False
