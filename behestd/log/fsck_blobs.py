"""Compares the descriptions of artifacts in a store with the contents in its data directory. Part of `fsck`."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from behest.v1.artifact_pb2 import Artifact

FOLDER = "blobs"
_KIND = "artifact"
_PIECE_BYTES = 1024 * 1024


def folder_of(namespace: str) -> str:
    """The name of a namespace's folder, as `blobs.file` names it."""
    return hashlib.sha256(namespace.encode()).hexdigest()[:32]


def path_of(namespace: str, sha256: bytes) -> Path:
    """Where a content is, below the folder of all."""
    name = sha256.hex()
    return Path(folder_of(namespace)) / name[:2] / name


def named(connection: sqlite3.Connection) -> Iterator[tuple[str, str, Artifact | None]]:
    """Yield (namespace, id, artifact) of every description; None for one that does not parse."""
    query = "SELECT namespace, id, body FROM records WHERE kind = ? ORDER BY namespace, id"
    for namespace, name, body in connection.execute(query, (_KIND,)):
        try:
            yield namespace, name, Artifact.FromString(body)
        except DecodeError:
            yield namespace, name, None


def problems(connection: sqlite3.Connection, root: Path) -> Iterator[str]:
    """Yield the artifacts whose content is missing or not what was written. Each content is read once."""
    verdicts: dict[Path, str] = {}
    for namespace, name, artifact in named(connection):
        if artifact is None:
            yield f"artifact {name} of {namespace}: its description does not parse"
            continue
        path = path_of(namespace, artifact.sha256)
        if path not in verdicts:
            verdicts[path] = _verdict(root / path, artifact)
        if verdicts[path]:
            yield f"artifact {name} of {namespace}: {verdicts[path]}"


def stored(root: Path) -> Iterator[Path]:
    """Yield every content, below the folder of all."""
    for path in sorted(root.glob("*/??/*")):
        if path.parts[-3] != "tmp":
            yield path.relative_to(root)


def dangling(connection: sqlite3.Connection, root: Path) -> int:
    """Count the contents that nothing names; the daemon lets go of them by itself when they are old enough."""
    names = {path_of(namespace, artifact.sha256) for namespace, _, artifact in named(connection) if artifact}
    return sum(path not in names for path in stored(root))


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.digest()


def _verdict(path: Path, artifact: Artifact) -> str:
    """What is wrong with a content, empty when it is whole."""
    try:
        if path.stat().st_size != artifact.size_bytes:
            return f"its content has {path.stat().st_size} bytes, not {artifact.size_bytes}"
        return "" if digest_of(path) == artifact.sha256 else "its content is damaged"
    except FileNotFoundError:
        return "its content is missing"
    except OSError as error:
        return f"its content cannot be read: {error.strerror}"
