"""Credentials in a URI of the run file: refused before anything can show them or write them down.

A run file's values go into `config.yaml`, checkpoints, metrics trackers and messages. Owns what
counts as credentials, and how a text is shown without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from manta.orchestrator.yaml_tree import Entries, Node, Scalar

_USER = re.compile(
    r"""://(?!anonymous@)(?:
        [^/?\#\s'"]*@  # user information
        | (?!\[)[^/?\#\s:@'"]*:(?!\d*(?:[/?\#\s'",\]}]|$))  # what follows a colon and is no port:
          [^\s'"]*@  # a password with a slash in it
    )""",
    re.VERBOSE,
)
_CONTAINER = re.compile(r"abfss?://[^/?#\s:@]+@")
"""Azure's way to name a container."""


def problems(node: Node) -> Iterator[str]:
    """One line, which does not show it, for every URI with credentials below `node`."""
    if isinstance(node, Entries):
        for each in node.entries.values():
            yield from problems(each)
    elif not isinstance(node, Scalar):
        for each in node.items:
            yield from problems(each)
    elif isinstance(node.value, str) and _begins_with_credentials(node.value):
        yield blackened(
            node.place.says(
                "credentials in a URI would be written into the run directory and shown: remove "
                "what stands before the @, and let the machine's role, or environment variables "
                "that run.variables names, have them"
            )
        )


def blackened(text: str) -> str:
    """`text` without what stands before the @ of its URIs."""
    return _USER.sub("://***@", text)


def _begins_with_credentials(value: str) -> bool:
    scheme = re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*(?=://)", value)
    if scheme is None or _CONTAINER.match(value.strip()):
        return False
    return _USER.match(value, scheme.end()) is not None
