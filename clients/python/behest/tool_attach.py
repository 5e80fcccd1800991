"""Keeps a tool server attached to a daemon, over as many streams as it takes.

Above: `tools`. Below: `tool_link`, one stream. Guarantees: a stream that breaks is opened again, with full jitter
between attempts, for as long as the server lives; each new one first reports every key that the server holds, so that
the daemon joins what runs and takes what is done; only a refusal that no repeat can change ends it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import grpc
import grpc.aio

from behest.calls import Backoff, Calls, Patience
from behest.channel import open_channel
from behest.errors import UNDECIDED_REASONS, BehestError, broken_stream, from_rpc
from behest.order import duration
from behest.services.artifacts import Artifacts
from behest.tool_link import Link, Standing
from behest.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from behest.v1.daemon_service_pb2 import GetServerInfoRequest
from behest.v1.daemon_service_pb2_grpc import DaemonServiceStub
from behest.v1.registry_service_pb2 import AttachHeld, AttachHello
from behest.v1.registry_service_pb2_grpc import RegistryServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from behest.security import Tls
    from behest.tool_service import Service
    from behest.v1.registry_service_pb2 import AttachWelcome

_log = logging.getLogger("behest.tools")

PAUSE_SECONDS = 5.0
"""The longest pause between two attempts to attach."""
ASK_SECONDS = 0.5
"""The longest pause between two questions whether the daemon is there."""
_UNHEARD = frozenset(reason for reason in UNDECIDED_REASONS if reason.startswith("TRANSPORT_"))


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server attaches, and as whom. `max_concurrent_calls` 0: as many as the daemon allows."""

    address: str
    server_name: str
    token: str = field(default="", repr=False)
    credentials: grpc.ChannelCredentials | None = None
    max_concurrent_calls: int = 0
    tls: Tls | None = None


class Attachment:
    """The attachment of one server to one daemon. Made by `ToolServer.attach`."""

    def __init__(self, target: Target, service: Service) -> None:
        self._target = target
        self._service = service
        self._lease_id = ""
        self._link: Link | None = None
        self._draining = asyncio.Event()
        self._owed: set[str] = set()
        self._welcomed = asyncio.Event()
        self._ended = asyncio.Event()
        self._error: BehestError | None = None

    @property
    def is_attached(self) -> bool:
        """Whether the daemon takes this server as attached, as far as is known here."""
        return self._link is not None

    async def ready(self) -> None:
        """Wait until the daemon has taken the server for the first time. Raises BehestError when it never will."""
        await self._welcomed.wait()
        self._raise()

    async def ended(self) -> None:
        """Wait until the attachment is over: drained, or refused. Raises BehestError when it was refused."""
        await self._ended.wait()
        self._raise()

    async def run(self) -> None:
        """Attach, and attach again, until drained or refused. A refusal is kept for `ready` and `ended`."""
        calls = Calls(Patience())
        backoff = Backoff(PAUSE_SECONDS)
        try:
            async with self._channel() as channel:
                while not self._is_over():
                    try:
                        await self._attach(channel, calls, backoff)
                        error: BehestError = broken_stream("the daemon ended the stream")
                    except BehestError as exc:
                        if not exc.is_resumable:
                            raise
                        error = exc
                    if self._is_over():
                        break
                    _log.info("attaching again: %s", error.reason)
                    await backoff.pause(error, give_up_seconds=math.inf)
        except BehestError as exc:
            _log.warning("server %s is not attached any more: %s", self._target.server_name, exc.reason)
            self._error = exc
        finally:
            self._welcomed.set()
            self._ended.set()

    async def drain(self, alone_seconds: float | None) -> None:
        """Take no more calls, give what is done or still runs, and end. The server's calls must be draining already.

        Returns before the end once the daemon has not answered anything for `alone_seconds`; None: waits on.
        """
        self._draining.set()
        if self._link is None and not self._owed:
            return
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(self._ended.wait())]
            if alone_seconds is not None:
                waits.append(group.create_task(self._alone(alone_seconds)))
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def announce(self) -> None:
        """Tell the daemon of the tools anew, unless this drains; one that is away is told when it is back."""
        hello = await self._hello()
        if self._link is not None and not self._draining.is_set():
            await self._link.announce(hello)

    def _is_over(self) -> bool:
        return self._draining.is_set() and not self._owed

    async def _alone(self, seconds: float) -> Literal[True]:
        """Wait until the daemon has not answered for so long: a stream tells of one that hangs much later."""
        heard_at = time.monotonic()
        # A connection of its own: that of the stream may be full, and waits longer and longer to be opened again.
        async with self._channel() as channel:
            ask = DaemonServiceStub(channel).GetServerInfo
            while (left := heard_at + seconds - time.monotonic()) > 0:
                try:
                    await ask(GetServerInfoRequest(), timeout=left)
                    heard_at = time.monotonic()
                except grpc.aio.AioRpcError as exc:
                    # A refusal is an answer too.
                    if from_rpc(exc).reason not in _UNHEARD:
                        heard_at = time.monotonic()
                await asyncio.sleep(min(ASK_SECONDS, seconds / 4))
        return True

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[grpc.aio.Channel]:
        target = self._target
        channel = open_channel(target.address, token=target.token, tls=target.tls, credentials=target.credentials)
        try:
            yield channel
        finally:
            await channel.close()

    async def _attach(self, channel: grpc.aio.Channel, calls: Calls, backoff: Backoff) -> None:
        """Serve over one stream. Raises BehestError."""
        stream = RegistryServiceStub(channel).AttachServer()
        artifacts = Artifacts(ArtifactServiceStub(channel), calls)
        link = Link(stream, self._service, Standing(artifacts, self._draining, self._owed))

        def welcomed(welcome: AttachWelcome) -> None:
            self._lease_id = welcome.lease_id
            self._link = link
            self._welcomed.set()
            backoff.heard(progress=True)

        try:
            await link.serve(await self._hello(), calls, welcomed)
        finally:
            self._link = None

    async def _hello(self) -> AttachHello:
        service = self._service
        dedupe = service.calls.dedupe
        held = await service.calls.held()
        # What is not held any more can be given to nobody.
        self._owed &= {key for key, _ in held}
        return AttachHello(
            server_name=self._target.server_name,
            tools=service.tools,
            models=service.models.listed,
            dedupe_retention=duration(dedupe.retention_seconds) if dedupe.is_durable else None,
            max_concurrent_calls=self._target.max_concurrent_calls,
            held=[AttachHeld(idempotency_key=key, is_done=is_done) for key, is_done in held],
            lease_id=self._lease_id,
            takes_chunked_arguments=True,
        )
