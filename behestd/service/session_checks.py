"""Checks of SessionService's and SessionDataService's requests, and the errors that only they raise."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from behest.v1.session_data_service_pb2 import SetSessionDataRequest
from behest.v1.session_pb2 import Session
from behestd.errors import InvalidRequest, LostRace, NotFound, TooLarge
from behestd.service.validate import (
    identifier,
    json_object,
    json_value,
    labels,
    max_bytes,
    max_items,
    not_negative,
    one_of,
    required,
)

CHANGEABLE = ("title", "agent_id", "labels", "metadata_json", "is_archived", "tools", "budget")
MAX_VALUE_BYTES = 256 * 1024
_MAX_TITLE_BYTES = 1024
_MAX_TOOLS = 256
_MAX_TOOL_BYTES = 64
_MAX_METADATA_BYTES = 64 * 1024
_MAX_KEY_BYTES = 256


class SessionVersionMismatch(LostRace):
    """Raised when a record of a session is not at the version expected; `version` is the present one, 0: none."""

    def __init__(self, version: int) -> None:
        super().__init__("SESSION_VERSION_MISMATCH", f"the record is at version {version}", version=version)


class DataNotFound(NotFound):
    """Raised when a session has no such key, or its entry has expired."""

    def __init__(self, key: str) -> None:
        super().__init__("SESSION_DATA_NOT_FOUND", f"key {key} not found", key=key)


class MessageNotFound(NotFound):
    """Raised when a session has no such message."""

    def __init__(self, message_id: str) -> None:
        super().__init__("SESSION_MESSAGE_NOT_FOUND", f"message {message_id} not found", messageId=message_id)


def check_session(session: Session, fields: Sequence[str] = CHANGEABLE) -> None:
    """Check those fields of a session that a client sets."""
    if "title" in fields:
        max_bytes("session.title", session.title, _MAX_TITLE_BYTES)
    if "agent_id" in fields and session.agent_id:
        identifier("session.agent_id", session.agent_id)
    if "labels" in fields:
        labels("session.labels", session.labels)
    if "tools" in fields:
        max_items("session.tools", session.tools, _MAX_TOOLS)
        for index, pattern in enumerate(session.tools):
            required(f"session.tools[{index}]", pattern)
            max_bytes(f"session.tools[{index}]", pattern, _MAX_TOOL_BYTES)
    if any(path.split(".")[0] == "budget" for path in fields):
        for limit, value in session.budget.ListFields():
            not_negative(f"session.budget.{limit.name}", value)
    if "metadata_json" in fields and session.metadata_json:
        json_object("session.metadata_json", session.metadata_json, _MAX_METADATA_BYTES)


def check_created(session: Session) -> None:
    """Check a session that is to be created."""
    if session.id:
        identifier("session.id", session.id)
    check_session(session)


def check_version(field: str, version: int) -> None:
    """Check a version in a message, where 0 is none."""
    not_negative(field, version)


def check_title(title: str) -> None:
    """Check the title of a fork."""
    max_bytes("title", title, _MAX_TITLE_BYTES)


def check_key(field: str, key: str) -> None:
    """Refuse a key that is empty, over 256 bytes, or holds control characters."""
    required(field, key)
    check_prefix(field, key)


def check_prefix(field: str, prefix: str) -> None:
    """Refuse what no key begins with."""
    max_bytes(field, prefix, _MAX_KEY_BYTES)
    if any(unicodedata.category(character) == "Cc" for character in prefix):
        raise InvalidRequest(field, "holds control characters")


def check_value(request: SetSessionDataRequest) -> None:
    """Check the value of an entry: JSON, or bytes of any kind, at most 256 KiB."""
    if one_of(request, "value") == "value_json":
        required("value_json", request.value_json)
        json_value("value_json", request.value_json, MAX_VALUE_BYTES)
    elif len(request.value_bytes) > MAX_VALUE_BYTES:
        raise TooLarge("value_bytes", len(request.value_bytes), MAX_VALUE_BYTES)
