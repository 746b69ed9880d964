"""The disk transport: files in a folder that sender and receivers reach, on any file system or
object storage that pyarrow knows.

Owns the file format and the folder's content. A file appears whole or not at all, and is read
against the SHA-256 of every byte, which travels beside it: a file that was cut short, corrupted or
exchanged is found.

A file: 8 bytes of magic, the header's size (uint64), the header (JSON: kind, version, hashes, the
index of tensors), zeros up to a multiple of `ALIGNMENT`, the content's bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow.fs as fs

from manta.actors.transports.chunk_codec import Bytes
from manta.actors.transports.delta import Delta
from manta.actors.transports.protocol import BadParcel, Content, Parcel, StoredFile, base_of
from manta.actors.weights import ALIGNMENT, TensorSpec, Weights, tree_hash
from manta.envs.records import WeightVersion

_HEAD = struct.Struct("<8sQ")
_MAGIC = b"MANTAW\x001"
_PREFIX, _SUFFIX = "weights-", ".bin"
_UNFINISHED = ".part"
_APPEARS_WHOLE = frozenset({"s3", "gcs", "abfs"})
"""File systems on which an object exists once its last byte was accepted; elsewhere a file is
written under another name and renamed."""


class DiskTransport:
    """See `manta.actors.transports.protocol.Transport`. `folder`: an absolute path or a URI; files
    in it that are named like the transport's own are removed by `keep_only`."""

    def __init__(self, folder: str) -> None:
        self._files, self._folder = open_folder(folder)

    def send(self, content: Content) -> Parcel:
        """Raises OSError where the folder cannot be written."""
        parts = _serialise(content)
        kind = "full" if base_of(content) is None else "delta"
        # A second file of one version must not replace the first, which may be read right now
        name = f"{_PREFIX}{content.version}-{kind}-{uuid4().hex[:8]}{_SUFFIX}"
        stored = StoredFile(
            f"{self._folder}/{name}", sum(len(part) for part in parts), tree_hash(b"", *parts)
        )
        self._write(stored.path, parts)
        return Parcel(content.version, base_of(content), stored.num_bytes, stored)

    def receive(self, parcel: Parcel) -> Content:
        assert isinstance(parcel.body, StoredFile)
        octets = self._read(parcel.body)
        header, body = _parse(octets)
        version = WeightVersion(*header["version"])
        if header["base"] is not None:
            return Delta(version, header["base"], header["sha256"], body)
        specs = tuple(
            TensorSpec(name, dtype, tuple(shape), start, end)
            for name, dtype, shape, start, end in header["specs"]
        )
        return Weights(version, specs, body, header["sha256"])

    def keep_only(self, parcels: tuple[Parcel, ...]) -> None:
        kept = {Path(p.body.path).name for p in parcels if isinstance(p.body, StoredFile)}
        listed = self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        for info in listed:
            is_ours = info.base_name.startswith(_PREFIX)
            if is_ours and info.base_name not in kept and info.type == fs.FileType.File:
                self._files.delete_file(info.path)

    def _write(self, path: str, parts: list[Bytes]) -> None:
        self._files.create_dir(self._folder, recursive=True)
        target = path if self._files.type_name in _APPEARS_WHOLE else path + _UNFINISHED
        with self._files.open_output_stream(target) as stream:
            for part in parts:
                stream.write(part)
        if target != path:
            self._files.move(target, path)

    def _read(self, stored: StoredFile) -> Bytes:
        try:
            with self._files.open_input_file(stored.path) as file:
                octets = np.frombuffer(file.read_buffer(), np.uint8)
        except OSError as error:
            raise BadParcel(f"weights cannot be read from {stored.path}: {error}") from error
        if len(octets) != stored.num_bytes:
            raise BadParcel(f"{stored.path} has {len(octets)} bytes, not {stored.num_bytes}")
        head, body = octets[: _body_start(octets)], octets[_body_start(octets) :]
        if tree_hash(b"", head, body) != stored.sha256:
            raise BadParcel(f"{stored.path} holds other bytes than were written")
        return octets


def open_folder(folder: str) -> tuple[Any, str]:
    """The file system of `folder` and its path there.

    Raises ValueError where it is neither an absolute path nor a URI that pyarrow understands.
    """
    if "://" not in folder and not Path(folder).is_absolute():
        raise ValueError(f"'{folder}' is neither an absolute path nor a URI")
    try:
        files, path = fs.FileSystem.from_uri(folder)
    except (OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"'{folder}' cannot be opened: {error}") from error
    return files, path.rstrip("/")


def _serialise(content: Content) -> list[Bytes]:
    header: dict[str, object] = {
        "version": list(content.version),
        "sha256": content.sha256,
        "base": base_of(content),
    }
    if isinstance(content, Weights):
        header["specs"] = [[s.name, s.dtype, s.shape, s.start, s.end] for s in content.specs]
    text = json.dumps(header).encode()
    head = _HEAD.pack(_MAGIC, len(text)) + text
    head += bytes(-len(head) % ALIGNMENT)
    body = content.data if isinstance(content, Weights) else content.encoded
    return [np.frombuffer(head, np.uint8), body]


def _body_start(octets: Bytes) -> int:
    """0 where there is not even a head."""
    if len(octets) < _HEAD.size:
        return 0
    magic, size = _HEAD.unpack(octets[: _HEAD.size].data)
    start = _HEAD.size + size
    start += -start % ALIGNMENT
    return int(start) if magic == _MAGIC and start <= len(octets) else 0


def _parse(octets: Bytes) -> tuple[dict[str, Any], Bytes]:
    """Header and content of a file whose hash was right."""
    _, size = _HEAD.unpack(octets[: _HEAD.size].data)
    header = json.loads(octets[_HEAD.size : _HEAD.size + size].tobytes())
    return header, octets[_body_start(octets) :]
