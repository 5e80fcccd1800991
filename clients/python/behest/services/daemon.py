"""The daemon itself: what it is, how it does, and what operators may ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.v1 import daemon_service_pb2

if TYPE_CHECKING:
    from behest.calls import Calls
    from behest.v1.daemon_service_pb2_grpc import DaemonServiceAsyncStub


class Daemon:
    """Calls of DaemonService. All raise BehestError. Reload, Drain and SetPaused are reached by the stub."""

    def __init__(self, stub: DaemonServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def info(self) -> daemon_service_pb2.GetServerInfoResponse:
        """Return version, limits, storage and keepalive."""
        return await self._calls.unary(self._stub.GetServerInfo, daemon_service_pb2.GetServerInfoRequest())

    async def status(self) -> daemon_service_pb2.GetStatusResponse:
        """Return how the daemon does now: runs by state, commits, pauses, whether it takes new runs."""
        return await self._calls.unary(self._stub.GetStatus, daemon_service_pb2.GetStatusRequest())

    async def config(self) -> daemon_service_pb2.GetConfigResponse:
        """Return the configuration in force, secrets masked."""
        return await self._calls.unary(self._stub.GetConfig, daemon_service_pb2.GetConfigRequest())
