"""Agents: named, versioned definitions of how runs are executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.field_mask_pb2 import FieldMask

from behest.services.ids import new_request_id
from behest.v1 import agent_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from behest.calls import Calls
    from behest.v1 import agent_pb2
    from behest.v1.agent_service_pb2_grpc import AgentServiceAsyncStub


class Agents:
    """Calls of AgentService. All raise BehestError."""

    def __init__(self, stub: AgentServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def create(self, agent: agent_pb2.Agent, *, request_id: str = "") -> agent_pb2.Agent:
        """Create an agent as version 1, and return it as it was stored."""
        request = agent_service_pb2.CreateAgentRequest(agent=agent, request_id=request_id or new_request_id())
        return (await self._calls.unary(self._stub.CreateAgent, request)).agent

    async def get(self, agent_id: str, *, version: int = 0) -> agent_pb2.Agent:
        """Return an agent at its newest (0) or at an earlier version."""
        request = agent_service_pb2.GetAgentRequest(agent_id=agent_id, version=version)
        return (await self._calls.unary(self._stub.GetAgent, request)).agent

    def list(self, request: agent_service_pb2.ListAgentsRequest | None = None) -> AsyncGenerator[agent_pb2.Agent, None]:
        """Yield the agents that a request asks for, ordered by id, page after page."""
        return self._calls.pages(
            self._stub.ListAgents, request or agent_service_pb2.ListAgentsRequest(), lambda page: page.agents
        )

    async def update(
        self, agent: agent_pb2.Agent, fields: Iterable[str], *, expected_version: int | None = None
    ) -> agent_pb2.Agent:
        """Change the named fields to what the given agent says, and return the new version."""
        request = agent_service_pb2.UpdateAgentRequest(
            agent=agent, update_mask=FieldMask(paths=fields), expected_version=expected_version
        )
        # A repeat of an update that took place would miss the version.
        is_repeatable = expected_version is None
        return (await self._calls.unary(self._stub.UpdateAgent, request, is_repeatable=is_repeatable)).agent

    async def delete(self, agent_id: str) -> None:
        """Delete an agent with all its versions. Idempotent."""
        await self._calls.unary(self._stub.DeleteAgent, agent_service_pb2.DeleteAgentRequest(agent_id=agent_id))
