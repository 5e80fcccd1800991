"""Servers: remote processes that are registered to serve the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.v1 import registry_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from behest.calls import Calls
    from behest.v1 import server_pb2
    from behest.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub


class Servers:
    """Calls of RegistryService. All raise BehestError. To attach a server of one's own, see `behest.tools`."""

    def __init__(self, stub: RegistryServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def register(self, server: server_pb2.Server, *, replace: bool = False) -> server_pb2.Server:
        """Register a server durably. Idempotent by name; succeeds even when it cannot be reached yet: see its state."""
        request = registry_service_pb2.RegisterServerRequest(server=server, replace=replace)
        return (await self._calls.unary(self._stub.RegisterServer, request)).server

    async def get(self, server_id: str) -> server_pb2.Server:
        """Return a server."""
        request = registry_service_pb2.GetServerRequest(server_id=server_id)
        return (await self._calls.unary(self._stub.GetServer, request)).server

    def list(
        self, request: registry_service_pb2.ListServersRequest | None = None
    ) -> AsyncGenerator[server_pb2.Server, None]:
        """Yield the servers that a request asks for, ordered by name, page after page."""
        return self._calls.pages(
            self._stub.ListServers, request or registry_service_pb2.ListServersRequest(), lambda page: page.servers
        )

    async def unregister(self, server_id: str) -> None:
        """Remove a registration. Idempotent."""
        request = registry_service_pb2.UnregisterServerRequest(server_id=server_id)
        await self._calls.unary(self._stub.UnregisterServer, request)
