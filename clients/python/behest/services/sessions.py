"""Sessions: the ordered conversations that runs are started on, and their messages."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from google.protobuf.field_mask_pb2 import FieldMask

from behest.services.artifacts import UPLOAD_SECONDS, chunks_of
from behest.services.ids import new_request_id
from behest.statuses import answer_of
from behest.v1 import session_pb2, session_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path

    from behest.calls import Calls
    from behest.v1 import message_pb2
    from behest.v1.session_service_pb2_grpc import SessionServiceAsyncStub


class Sessions:
    """Calls of SessionService. All raise BehestError."""

    def __init__(self, stub: SessionServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def create(self, session: session_pb2.Session | None = None, *, request_id: str = "") -> session_pb2.Session:
        """Create a session. Of the one given, id, title, agent_id, labels and metadata_json are taken."""
        request = session_service_pb2.CreateSessionRequest(session=session, request_id=request_id or new_request_id())
        return (await self._calls.unary(self._stub.CreateSession, request)).session

    async def get(self, session_id: str) -> session_pb2.Session:
        """Return a session, with its active and its queued runs."""
        request = session_service_pb2.GetSessionRequest(session_id=session_id)
        return (await self._calls.unary(self._stub.GetSession, request)).session

    def list(
        self, request: session_service_pb2.ListSessionsRequest | None = None
    ) -> AsyncGenerator[session_pb2.Session, None]:
        """Yield the sessions that a request asks for, newest first, page after page."""
        return self._calls.pages(
            self._stub.ListSessions, request or session_service_pb2.ListSessionsRequest(), lambda page: page.sessions
        )

    async def update(self, session: session_pb2.Session, fields: Iterable[str]) -> session_pb2.Session:
        """Change the named fields of a session to what the given one says; its version, if set, must be current."""
        request = session_service_pb2.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=fields))
        # A repeat of an update that took place would miss the version.
        is_repeatable = session.version == 0
        return (await self._calls.unary(self._stub.UpdateSession, request, is_repeatable=is_repeatable)).session

    async def delete(self, session_id: str) -> None:
        """Delete a session with everything that belongs to it. Idempotent."""
        request = session_service_pb2.DeleteSessionRequest(session_id=session_id)
        await self._calls.unary(self._stub.DeleteSession, request)

    async def fork(
        self, session_id: str, *, upto_message_id: str = "", title: str = "", request_id: str = ""
    ) -> session_pb2.Session:
        """Create a session that starts with the messages of another, up to one of them (empty: all)."""
        request = session_service_pb2.ForkSessionRequest(
            source_session_id=session_id,
            upto_message_id=upto_message_id,
            title=title,
            request_id=request_id or new_request_id(),
        )
        return (await self._calls.unary(self._stub.ForkSession, request)).session

    def messages(
        self, session_id: str, *, include_summaries: bool = False
    ) -> AsyncGenerator[message_pb2.Message, None]:
        """Yield the messages of a session, oldest first."""
        request = session_service_pb2.ListMessagesRequest(session_id=session_id, include_summaries=include_summaries)
        return self._calls.pages(self._stub.ListMessages, request, lambda page: page.messages)

    async def compact(self, session_id: str, *, model: str = "") -> session_service_pb2.CompactSessionResponse:
        """Put a summary in the place of the oldest messages, for the model only. Takes as long as the model does."""
        request = session_service_pb2.CompactSessionRequest(session_id=session_id, model=model)
        return await self._calls.unary(self._stub.CompactSession, request, is_repeatable=False, timeout_seconds=600.0)

    async def export(self, session_id: str) -> AsyncGenerator[bytes, None]:
        """Yield a session as pieces of a file of JSON lines."""
        call = self._stub.ExportSession(session_service_pb2.ExportSessionRequest(session_id=session_id))
        async with aclosing(self._calls.stream(call)) as frames:
            async for frame in frames:
                yield frame.chunk

    async def load(self, source: bytes | Path, *, request_id: str = "") -> session_pb2.Session:
        """Create a session from what `export` gave, bytes or a file. Raises OSError for the file."""
        name = request_id or new_request_id()
        return (await self._calls.repeated(lambda: self._load(source, name))).session

    async def _load(self, source: bytes | Path, request_id: str) -> session_service_pb2.ImportSessionResponse:
        async def requests() -> AsyncGenerator[session_service_pb2.ImportSessionRequest, None]:
            yield session_service_pb2.ImportSessionRequest(request_id=request_id)
            async with aclosing(chunks_of(source)) as chunks:
                async for chunk in chunks:
                    yield session_service_pb2.ImportSessionRequest(chunk=chunk)

        return await answer_of(self._stub.ImportSession(timeout=UPLOAD_SECONDS), requests())
