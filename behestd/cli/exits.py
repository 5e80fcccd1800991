"""What the exit codes mean, and which belongs to which error. The one table."""

from __future__ import annotations

from behestd.config.source import ConfigInvalid
from behestd.errors import BehestError, Corrupt, StorageFailed
from behestd.log.directory import StoreInUse
from behestd.log.sqlite_schema import NewerStore
from behestd.log.store import CommitUnknown
from behestd.service.listen import AddressRefused, AddressUnusable

CORRUPT = 65
IN_USE = 69
STORE_FAILED = 70
CONFIGURATION = 78

TABLE: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((ConfigInvalid, AddressRefused, NewerStore), CONFIGURATION),
    ((AddressUnusable, StoreInUse), IN_USE),
    ((Corrupt,), CORRUPT),
    ((CommitUnknown, StorageFailed), STORE_FAILED),
    # What stands in the way before anything serves: an extra or an extension that is not there, a directory of others.
    ((BehestError, ImportError, OSError), CONFIGURATION),
)
"""The first row that fits counts. What is in no row is unexpected: it keeps its traceback, and Python exits with 1."""
KNOWN: tuple[type[Exception], ...] = (ExceptionGroup, *(kind for kinds, _ in TABLE for kind in kinds))
"""What may have a code."""


def code_of(error: BaseException) -> tuple[int, BaseException] | None:
    """Find the code of an error, and the error itself: of a group, the first that has one. None: unexpected."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := code_of(inner)) is not None), None)
    for kinds, code in TABLE:
        if isinstance(error, kinds):
            return code, error
    return None
