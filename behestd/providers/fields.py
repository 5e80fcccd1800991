"""Fields of a vendor's JSON answer, read with suspicion: what has a wrong type is MALFORMED, never a crash. Pure.

Above: the wire modules of the adapters and `http_client`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from behestd.providers.failure import ProviderFailure

_MAX_COUNT = 1 << 53
_T = TypeVar("_T")


def malformed(problem: str) -> ProviderFailure:
    """Make the failure of an answer that makes no sense."""
    return ProviderFailure("PROVIDER_MALFORMED_OUTPUT", problem)


def parsed(text: str | bytes) -> object:
    """Read a document of an answer. Raises: ProviderFailure."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed("the answer is no JSON") from error


def is_object(text: str) -> bool:
    """Whether a text is a whole JSON object, which the arguments of a call that was cut are not."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def typed(value: object, kind: type[_T], what: str) -> _T:
    """Return a value that is of a type. Raises: ProviderFailure."""
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise malformed(f"{what} is no {kind.__name__}")


def counted(counts: Mapping[str, Any], name: str) -> int:
    """Return a count, 0 when there is none. Raises: ProviderFailure."""
    value = counts.get(name) or 0
    if not isinstance(value, int) or not 0 <= value < _MAX_COUNT:
        raise malformed(f"{name} is no count")
    return value
