"""Environments and rewards by name: two literal registries, and `module:attribute` plug-ins.

Owns finding, importing and constructing. What an option means is its constructor's business.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, cast, overload

from manta.envs.options import fit_options
from manta.envs.protocols import Env, Options, Reward
from manta.envs.rewards.scope import scope_of

Kind: TypeAlias = Literal["env", "reward"]

ENVS: Mapping[str, str] = {
    "arithmetic": "manta.envs.families.arithmetic:Arithmetic",
    "countdown": "manta.envs.families.countdown:Countdown",
    "gsm8k": "manta.envs.families.gsm8k:Gsm8k",
    "preferences": "manta.envs.families.preferences:Preferences",
    "sorting": "manta.envs.families.sorting:Sorting",
}

REWARDS: Mapping[str, str] = {
    "by_turn": "manta.envs.rewards.by_turn:ByTurn",
    "distinct": "manta.envs.rewards.distinct:Distinct",
    "exact": "manta.envs.rewards.exact:Exact",
    "expression": "manta.envs.rewards.expression:Expression",
    "format": "manta.envs.rewards.format:Format",
    "length": "manta.envs.rewards.length:Length",
    "rarity": "manta.envs.rewards.rarity:Rarity",
    "reward_model": "manta.envs.rewards.reward_model:RewardModel",
    "token_log_ratio": "manta.envs.rewards.token_log_ratio:TokenLogRatio",
}

ENV_MEMBERS = ("source", "gold", "reply", "budgets", "validate", "single_turn")


@overload
def build(kind: Literal["env"], name: str, options: Options) -> Env: ...
@overload
def build(kind: Literal["reward"], name: str, options: Options) -> Reward: ...
def build(kind: Kind, name: str, options: Options) -> Env | Reward:
    """The environment or reward `name` (a registry name or `module:attribute`), made from options.

    Raises ValueError for a name that is not found (with the nearest one that is), for options that
    the constructor does not take or lacks, and for a result that does not fit the seam. What the
    constructor itself raises passes through.
    """
    constructor = _find(kind, name)
    fit_options(f"{kind} {name!r}", constructor, options)
    made = constructor(**options)
    if kind == "reward":
        scope_of(name, made)
        return cast(Reward, made)
    missing = [member for member in ENV_MEMBERS if not hasattr(made, member)]
    if missing:
        raise ValueError(
            f"env {name!r} ({type(made).__name__}) lacks {', '.join(missing)}: derive it from "
            "manta.envs.families.family.Family, or add them"
        )
    return cast(Env, made)


def _find(kind: Kind, name: str) -> Callable[..., object]:
    registry = ENVS if kind == "env" else REWARDS
    place = name if ":" in name else registry.get(name)
    if place is None:
        near = difflib.get_close_matches(name, registry, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(registry)};"
        raise ValueError(f"no {kind} is named {name!r}: {hint} (or name one module:attribute)")
    module_name, _, attribute = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{kind} {name!r}: there is no module {error.name!r}; is it on the Python path?"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f"{kind} {name!r}: module {module_name} has no class {attribute!r}")
    return cast("Callable[..., object]", found)
