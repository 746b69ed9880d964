"""What names a reward artefact: rule, parameters, and a short hash of both and of the code."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from types import ModuleType

from manta.envs.records import Json


def version_of(rule: str, parameters: Mapping[str, Json], *code: ModuleType | type) -> str:
    """`rule(name=value, ...)#hash`; equal versions score alike.

    The hash covers rule, parameters and the source of `code` (the modules and classes that decide
    the value), so that an edited rule has another version. Raises OSError where a source is not
    to be had, as for a class typed into a console.
    """
    listed = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
    sources = [inspect.getsource(each) for each in code]
    text = json.dumps([rule, dict(parameters), sources], sort_keys=True)
    return f"{rule}({listed})#{hashlib.sha256(text.encode()).hexdigest()[:8]}"
