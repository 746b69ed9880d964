"""The manifest of a checkpoint: its format, its files, and whether they are as they were written.

Owns `manifest.json`. What the files hold, and when a manifest is written, is
`manta.orchestrator.checkpoint`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from manta.actors.stored_folder import StoredFolder, WrittenFile

FORMAT = 2
MANIFEST = "manifest.json"


class Unusable(ValueError):
    """A checkpoint that is not known to be damaged, and cannot be read: going on from an older one
    would lose it."""


class OtherFormat(Unusable):
    """Another version of Manta wrote it."""


def write_manifest(folder: StoredFolder, entries: Mapping[str, WrittenFile]) -> None:
    """`entries` by name relative to `folder`. Raises OSError where it cannot be written."""
    files = {
        name: {"bytes": entries[name].num_bytes, "sha256": entries[name].sha256}
        for name in sorted(entries)
    }
    folder.write(MANIFEST, json.dumps({"format": FORMAT, "files": files}, indent=1))


def read_manifest(folder: StoredFolder) -> dict[str, WrittenFile]:
    """The files that it names. Raises ValueError, or OtherFormat; OSError where nobody knows."""
    try:
        manifest = json.loads(_read(folder, MANIFEST))
        found = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"checkpoint {folder} has no readable {MANIFEST}: {error!r}") from error
    if found != FORMAT:
        is_newer = isinstance(found, int) and found > FORMAT
        raise OtherFormat(
            f"checkpoint {folder} has format {found}, this version of Manta reads {FORMAT}: "
            f"{'a newer' if is_newer else 'another'} version wrote it. Go on with that version; "
            "or, to give up what only it can read, move this folder away"
        )
    try:
        return {
            name: WrittenFile(name, entry["bytes"], entry["sha256"])
            for name, entry in manifest["files"].items()
        }
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"checkpoint {folder} has no readable {MANIFEST}: {error!r}") from error


def damage(folder: StoredFolder, expected: WrittenFile) -> str | None:
    """What is wrong with a file; None where it is as it was written. Raises OSError where nobody
    knows."""
    found = folder.size(expected.name)
    if found is None:
        return "is missing"
    if found != expected.num_bytes:
        return f"has {found} bytes, {expected.num_bytes} were written"
    try:
        is_same = folder.sha256(expected.name) == expected.sha256
    except OSError as error:
        if folder.local is None:
            raise
        return f"cannot be read: {error}"
    return None if is_same else "holds other bytes than were written (SHA-256)"


def _read(folder: StoredFolder, name: str) -> bytes:
    """Raises ValueError where the file is missing, or this machine's disk cannot read it; OSError
    where it is not known whether storage elsewhere has it."""
    try:
        return folder.read(name)
    except OSError as error:
        if folder.local is None and not isinstance(error, FileNotFoundError):
            raise
        raise ValueError(str(error)) from error
