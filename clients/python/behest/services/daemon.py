"""The daemon itself: what it is, how it does, and what operators may ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.v1 import daemon_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from behest.calls import Calls
    from behest.v1.daemon_service_pb2_grpc import DaemonServiceAsyncStub


class Daemon:
    """Calls of DaemonService. All raise BehestError."""

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

    async def pause(self, target: daemon_service_pb2.PauseTarget, reason: str) -> Sequence[daemon_service_pb2.Pause]:
        """Stop new effects of a tool, a model, an agent, a namespace or all, and return all pauses. Idempotent.

        When it returns the pause is durable and in force: what is in flight ends as it would, runs that need what is
        paused wait.
        """
        request = daemon_service_pb2.SetPausedRequest(target=target, paused=True, reason=reason)
        return (await self._calls.unary(self._stub.SetPaused, request)).pauses

    async def unpause(self, target: daemon_service_pb2.PauseTarget) -> Sequence[daemon_service_pb2.Pause]:
        """Lift the pause of exactly this target, and return those that are left. Idempotent."""
        request = daemon_service_pb2.SetPausedRequest(target=target)
        return (await self._calls.unary(self._stub.SetPaused, request)).pauses

    async def reload(self) -> daemon_service_pb2.ReloadResponse:
        """Have the configuration read again, and return which keys changed. Fails with RUNTIME_CONFIG_INVALID."""
        return await self._calls.unary(self._stub.Reload, daemon_service_pb2.ReloadRequest())

    async def drain(self, seconds: float | None = None) -> daemon_service_pb2.DrainResponse:
        """Begin the end of the daemon; running runs get so many seconds (None: as configured)."""
        request = daemon_service_pb2.DrainRequest()
        if seconds is not None:
            request.timeout.FromNanoseconds(round(seconds * 1_000_000_000))
        return await self._calls.unary(self._stub.Drain, request)
