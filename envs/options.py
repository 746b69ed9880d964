"""Options from a run file against the constructor that takes them.

Owns the checks of names and plain types, by the constructor's signature. What an option means is
the constructor's business.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Literal, Union

from manta.envs.protocols import Options
from manta.envs.records import Json


def fit_options(what: str, constructor: Callable[..., object], options: Options) -> None:
    """Raises ValueError naming `what`, the option and what `constructor` takes, where an option is
    unknown, of a wrong plain type (numbers, texts, literals, lists), or missing."""
    parameters = inspect.signature(constructor).parameters
    listed = (str(p.replace(annotation=p.empty)) for p in parameters.values())
    takes = f"it takes ({', '.join(listed)})"
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(constructor)
    for option, value in options.items():
        if option not in parameters and not is_open:
            near = difflib.get_close_matches(option, parameters, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{what} has no option {option!r}: {hint}{takes}")
        if option in hints and not _suits(value, hints[option]):
            raise ValueError(f"{what}: option {option!r} cannot be {value!r}: {takes}")
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in options
    ]
    if missing:
        raise ValueError(f"{what} needs the option {', '.join(missing)}: {takes}")


def _hints(constructor: Callable[..., object]) -> dict[str, object]:
    try:
        parameters = inspect.signature(constructor, eval_str=True).parameters
    except NameError:  # an annotation that only type checkers import
        return {}
    return {name: p.annotation for name, p in parameters.items() if p.annotation is not p.empty}


def _suits(value: Json, hint: object) -> bool:
    """Whether `value` can be meant by `hint`; True for types that are not plain."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_suits(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (Sequence, list, tuple):
        return isinstance(value, list | tuple | str)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, typing.cast(type, hint))
    return True
