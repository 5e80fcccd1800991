"""Scratch data of sessions: small values under keys, with an optional end of life."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.order import duration
from behest.v1 import session_data_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from behest.calls import Calls
    from behest.v1.session_data_service_pb2 import SessionDataEntry
    from behest.v1.session_data_service_pb2_grpc import SessionDataServiceAsyncStub


class SessionData:
    """Calls of SessionDataService. All raise BehestError."""

    def __init__(self, stub: SessionDataServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def get(self, session_id: str, key: str) -> SessionDataEntry:
        """Return one entry."""
        request = session_data_service_pb2.GetSessionDataRequest(session_id=session_id, key=key)
        return (await self._calls.unary(self._stub.GetSessionData, request)).entry

    async def set(
        self,
        session_id: str,
        key: str,
        value: str | bytes,
        *,
        time_to_live_seconds: float | None = None,
        expected_version: int | None = None,
    ) -> SessionDataEntry:
        """Create or replace an entry: JSON as str, anything else as bytes. Version 0 means that there must be none."""
        request = session_data_service_pb2.SetSessionDataRequest(
            session_id=session_id,
            key=key,
            time_to_live=None if time_to_live_seconds is None else duration(time_to_live_seconds),
            expected_version=expected_version,
        )
        if isinstance(value, str):
            request.value_json = value
        else:
            request.value_bytes = value
        is_repeatable = expected_version is None
        return (await self._calls.unary(self._stub.SetSessionData, request, is_repeatable=is_repeatable)).entry

    async def delete(self, session_id: str, key: str, *, expected_version: int | None = None) -> None:
        """Delete an entry. Idempotent."""
        request = session_data_service_pb2.DeleteSessionDataRequest(
            session_id=session_id, key=key, expected_version=expected_version
        )
        await self._calls.unary(self._stub.DeleteSessionData, request)

    def list(self, session_id: str, *, key_prefix: str = "") -> AsyncGenerator[SessionDataEntry, None]:
        """Yield the entries of a session, ordered by key, page after page."""
        request = session_data_service_pb2.ListSessionDataRequest(session_id=session_id, key_prefix=key_prefix)
        return self._calls.pages(self._stub.ListSessionData, request, lambda page: page.entries)
