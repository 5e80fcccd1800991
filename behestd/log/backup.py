"""Copies a data directory while a daemon works on it, and makes a new one from such a copy.

Above: `behestd backup` and `behestd restore`. Below: SQLite's online backup, and the contents of artifacts, which are
written once and durable before anything names them: copied after the store, all that it names are there. A backup is
whole or it is none: it is made beside its place, checked, and renamed last; what a crash leaves is not taken for one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from behestd import errors
from behestd.failpoint import failpoint
from behestd.log import fsck, fsck_blobs, sqlite_schema
from behestd.log.directory import DIRECTORY_MODE, FILE_MODE, boot_id

MANIFEST_NAME = "manifest.json"
FORMAT = 1
TRIES = 5
"""How often the store is copied again because content that it names was deleted before that could be copied too."""
STEP = 1_000
"""How far the generation of a restored store is above that of the backup: above what the original has used since."""
_PIECE_BYTES = 1024 * 1024


class BackupInvalid(errors.Corrupt):
    """Raised when a directory is no backup, or not as it was written (exit code 65)."""

    def __init__(self, problem: str) -> None:
        super().__init__("STORAGE_CORRUPT", f"the backup cannot be used: {problem}", problem=problem)


class PlaceTaken(FileExistsError):
    """Raised when the place of a backup or of a restored directory is not empty."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is there already and not empty")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. `position` is the newest commit, `sha256` is of the store's file."""

    format: int
    store_id: str
    generation: int
    version: int
    position: int
    runs: int
    events: int
    sha256: str
    size_bytes: int
    blobs: int
    blob_bytes: int


class _Vanished(Exception):
    """Raised when content that the copied store names is not there any more."""


def backup(data_dir: Path, place: Path) -> Manifest:
    """Back a data directory up, beside a daemon or without one, and check what was written.

    Raises PlaceTaken, FileNotFoundError, StoreCorrupt when what was copied is damaged, OSError, sqlite3.Error.
    """
    source = data_dir / sqlite_schema.FILE_NAME
    if not source.exists():
        raise FileNotFoundError(f"no store in {data_dir}")
    _check_empty(place)
    draft = place.with_name(f".{place.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=DIRECTORY_MODE, parents=True)
    for attempt in range(TRIES):
        _copy_store(source, draft / sqlite_schema.FILE_NAME)
        failpoint("backup.after_store")
        try:
            _copy_blobs(data_dir / fsck_blobs.FOLDER, draft)
            break
        except _Vanished:
            if attempt == TRIES - 1:
                raise sqlite_schema.StoreCorrupt("content that it names is not there") from None
    manifest = _manifest(draft)
    failpoint("backup.before_manifest")
    _write(draft / MANIFEST_NAME, json.dumps(asdict(manifest), indent=2).encode() + b"\n")
    _publish(draft, place)
    return manifest


def restore(backup_dir: Path, data_dir: Path) -> Manifest:
    """Make a data directory from a backup, with a generation that no daemon has used for this store.

    Raises BackupInvalid, PlaceTaken, NewerStore, OSError.
    """
    _check_empty(data_dir)
    manifest = verify(backup_dir)
    draft = data_dir.with_name(f".{data_dir.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=DIRECTORY_MODE, parents=True)
    _copy(backup_dir / sqlite_schema.FILE_NAME, draft / sqlite_schema.FILE_NAME)
    _copy_blobs(backup_dir / fsck_blobs.FOLDER, draft)
    failpoint("restore.before_rename")
    with contextlib.closing(sqlite_schema.connect(draft / sqlite_schema.FILE_NAME)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        sqlite_schema.migrate(connection)
        sqlite_schema.identify(connection, boot_id())
        connection.execute("UPDATE meta SET generation = generation + ?", (STEP,))
    _publish(draft, data_dir)
    return manifest


def verify(backup_dir: Path) -> Manifest:
    """Check that a backup is whole: hashes, pages, logs, views, contents. Raises BackupInvalid, NewerStore."""
    try:
        manifest = Manifest(**json.loads((backup_dir / MANIFEST_NAME).read_bytes()))
    except FileNotFoundError:
        raise BackupInvalid(f"{backup_dir} has no {MANIFEST_NAME}") from None
    except (ValueError, TypeError):
        raise BackupInvalid(f"its {MANIFEST_NAME} is damaged") from None
    if manifest.format != FORMAT:
        raise BackupInvalid(f"it has format {manifest.format}, this version knows {FORMAT}")
    try:
        found = _manifest(backup_dir)
    except FileNotFoundError:
        raise BackupInvalid("its store is missing") from None
    except sqlite_schema.StoreCorrupt as error:
        raise BackupInvalid(str(error)) from error
    for name, value in asdict(manifest).items():
        if getattr(found, name) != value:
            raise BackupInvalid(f"its {name} is {getattr(found, name)}, not {value}")
    return manifest


# --- copying ---


def _copy_store(source: Path, target: Path) -> None:
    """Copy the store as it is at one moment. Its WAL may grow meanwhile, which the daemon's next checkpoint ends."""
    target.unlink(missing_ok=True)
    target.touch(mode=FILE_MODE)
    with (
        contextlib.closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
        # One file, without a WAL beside it, that can be read from anywhere.
        new.execute("PRAGMA journal_mode = DELETE")
    _sync(target)


def _copy_blobs(source: Path, draft: Path) -> None:
    """Copy the contents that the store in `draft` names."""
    with _reading(draft) as connection:
        named = {fsck_blobs.path_of(space, each.sha256) for space, _, each in fsck_blobs.named(connection) if each}
    for path in sorted(named):
        target = draft / fsck_blobs.FOLDER / path
        if target.exists():
            continue
        for folder in (target.parent.parent.parent, target.parent.parent, target.parent):
            folder.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        try:
            _copy(source / path, target)
        except FileNotFoundError:
            raise _Vanished from None


def _manifest(place: Path) -> Manifest:
    """Check the store and the contents of a place, and say what they are. Raises StoreCorrupt."""
    report = fsck.check_all(place)
    if report.problems:
        raise sqlite_schema.StoreCorrupt(report.problems[0])
    with _reading(place) as connection:
        (position,) = connection.execute(
            "SELECT max(position, coalesce((SELECT max(position) FROM chunks), 0)) FROM meta"
        ).fetchone()
    store = place / sqlite_schema.FILE_NAME
    blobs = list(fsck_blobs.stored(place / fsck_blobs.FOLDER))
    return Manifest(
        format=FORMAT,
        store_id=report.store_id,
        generation=report.generation,
        version=report.version,
        position=position,
        runs=report.runs,
        events=report.events,
        sha256=fsck_blobs.digest_of(store).hex(),
        size_bytes=store.stat().st_size,
        blobs=len(blobs),
        blob_bytes=sum((place / fsck_blobs.FOLDER / path).stat().st_size for path in blobs),
    )


@contextlib.contextmanager
def _reading(place: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{(place / sqlite_schema.FILE_NAME).resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        yield connection


# --- files ---


def _check_empty(place: Path) -> None:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise PlaceTaken(place)


def _copy(source: Path, target: Path) -> None:
    draft = target.with_name(target.name + ".part")
    with source.open("rb") as old, open(draft, "wb", opener=_private) as new:
        shutil.copyfileobj(old, new, _PIECE_BYTES)
        new.flush()
        os.fsync(new.fileno())
    draft.replace(target)


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb", opener=_private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)


def _publish(draft: Path, place: Path) -> None:
    """Give a directory that is complete its name, durably."""
    for folder in (path for path in draft.rglob("*") if path.is_dir()):
        _sync(folder)
    _sync(draft)
    draft.rename(place)
    _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
