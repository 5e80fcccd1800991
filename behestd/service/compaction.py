"""CompactSession of SessionService: a summary on request, and the circuit of a session. Below: the log."""

from __future__ import annotations

from collections.abc import Mapping

from behest.v1 import session_service_pb2 as pb
from behestd.errors import SessionNotFound
from behestd.log.store import SESSION_KIND
from behestd.runtime.agents import Agents
from behestd.runtime.compaction_manual import ManualCompaction
from behestd.runtime.house import House
from behestd.service.call import Call
from behestd.service.chat_checks import MAX_NAME_BYTES
from behestd.service.methods import Handler
from behestd.service.validate import identifier, max_bytes


class SessionCompaction:
    """Handler of CompactSession."""

    def __init__(self, house: House, agents: Agents) -> None:
        self._store = house.log.store
        self._manual = ManualCompaction(house, agents)

    def handlers(self) -> Mapping[str, Handler]:
        """The handler by full name."""
        return {"/behest.v1.SessionService/CompactSession": self.compact_session}

    async def compact_session(self, request: pb.CompactSessionRequest, call: Call) -> pb.CompactSessionResponse:
        """Put a summary in the place of the oldest messages, or close the session's circuit."""
        identifier("session_id", request.session_id)
        max_bytes("model", request.model, MAX_NAME_BYTES)
        record = await self._store.record(call.namespace, SESSION_KIND, request.session_id, 0)
        if record is None:
            raise SessionNotFound(request.session_id)
        if request.only_reset_circuit:
            await self._manual.reset(call.namespace, request.session_id)
            return pb.CompactSessionResponse()
        made = await self._manual.compact(call.namespace, record, request.model)
        return pb.CompactSessionResponse(
            summary_message_id=made.summary_id,
            tokens_before=made.tokens_before,
            tokens_after=made.tokens_after,
            usage=made.usage,
        )
