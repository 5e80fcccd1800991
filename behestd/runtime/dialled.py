"""One dialled server: its registration, the tools that it was last known to list, and how the connection does.

Above: `registry`, which keeps a task for each. Below: `tools.remote`. A server that is not reached keeps its tools, so
that calls of runs that pinned them fail as not sent, and are tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.server_pb2 import Server, ServerState, ServerTls
from behest.v1.tool_pb2 import Tool
from behest.v1.tool_service_pb2 import ListToolsResponse
from behestd.core.times import timestamp
from behestd.errors import BehestError, InvalidRequest, Unavailable
from behestd.runtime.clock import Clock, Rng
from behestd.tools.catalog import Standing
from behestd.tools.endpoint import Rules, check
from behestd.tools.remote import Keep, RemoteServer, keep_nothing
from behestd.tools.remote_channel import NO_TOKEN, Link, Resolve, Tls, system_resolve
from behestd.tools.schema import Validators
from behestd.tools.tool import ToolFailure

CONNECT_SECONDS = 5.0
REFRESH_SECONDS = 30.0
"""How often the tools of a server that is connected are listed again: also its sign of life."""
GRACE_SECONDS = 600.0
"""How long calls in flight may go on when their server is removed or replaced."""
_FIRST_DELAY_SECONDS = 0.1
_LAST_DELAY_SECONDS = 5.0

Learn = Callable[["Dialled", Sequence[Tool]], Awaitable[None]]
"""Takes the tools that a server lists now. Raises BehestError for tools that cannot be taken."""


@dataclass(frozen=True, slots=True)
class Dialling:
    """How servers are reached. `secrets` gives the text that a reference names; it raises LookupError or ValueError."""

    secrets: Callable[[str], str]
    rules: Rules = field(default_factory=Rules)
    """Which addresses callers may register."""
    configured: Sequence[Server] = ()
    resolve: Resolve = system_resolve
    keep: Keep = keep_nothing
    """Keeps reads of late answers going."""

    def dial(self, server: Server, validators: Validators) -> RemoteServer:
        """Make the connection of a server. Raises EndpointRefused, and InvalidRequest for secrets of TLS."""
        rules = self.rules
        if server.configured:
            rules = replace(rules, allow_loopback=True, allow_unix=True, allow_private=True)
        has_tls = server.HasField("tls")
        link = Link(
            server_id=server.id,
            endpoint=check(server.address, rules, has_tls=has_tls),
            tls=self._tls(server.tls) if has_tls else None,
            token=partial(self.secrets, server.token_ref) if server.token_ref else NO_TOKEN,
            resolve=self.resolve,
        )
        return RemoteServer(link, validators, self.keep)

    def _tls(self, tls: ServerTls) -> Tls:
        material: dict[str, bytes] = {}
        for field_name in ("ca_ref", "certificate_ref", "key_ref"):
            reference = getattr(tls, field_name)
            try:
                material[field_name] = self.secrets(reference).encode() if reference else b""
            except (LookupError, OSError, ValueError):
                raise InvalidRequest(f"tls.{field_name}", "names nothing that can be read") from None
        return Tls(material["ca_ref"], material["certificate_ref"], material["key_ref"], tls.server_name)


class Dialled:
    """A dialled server. `tools` are as it lists them, `tool_names` as models see them, empty while not listed."""

    __slots__ = ("_seen_ns", "_state", "error", "namespace", "registration", "remote", "tool_names", "tools", "tried")

    def __init__(
        self, namespace: str, registration: Server, remote: RemoteServer | None, tools: Sequence[Tool] = ()
    ) -> None:
        """`remote` is None for a server that may not be dialled."""
        self.namespace = namespace
        self.registration = registration
        self.remote = remote
        self.tools = tuple(tools)
        self.tool_names: tuple[str, ...] = ()
        self.error: BehestError | None = None
        self.tried = asyncio.Event()
        """Set once it was reached, or was not."""
        self._state = ServerState.SERVER_STATE_CONNECTING
        self._seen_ns = 0
        if remote is None:
            self.disconnect()

    @property
    def name(self) -> str:
        """The name, unique in the namespace."""
        return self.registration.name

    def reached(self, now_ns: int) -> None:
        """Take note that it answers."""
        self._state, self._seen_ns, self.error = ServerState.SERVER_STATE_READY, now_ns, None
        self.tried.set()

    def failed(self, error: BehestError) -> None:
        """Take note that it does not answer, or not as it should."""
        is_away = isinstance(error, ToolFailure) and error.failure_class == FailureClass.FAILURE_CLASS_NOT_SENT
        self._state = ServerState.SERVER_STATE_CONNECTING if is_away else ServerState.SERVER_STATE_DEGRADED
        if isinstance(error, ToolFailure):
            error = Unavailable("TOOL_UNAVAILABLE", error.message, serverId=self.registration.id)
        self.error = error
        self.tried.set()

    def disconnect(self, error: BehestError | None = None) -> None:
        """Take note that it may not be dialled."""
        self._state, self.error = ServerState.SERVER_STATE_DISCONNECTED, error
        self.tried.set()

    def offered(self) -> Server:
        """The registration as its tools are offered."""
        return self.registration

    def listed(self) -> bytes:
        """What is recorded of its tools."""
        return ListToolsResponse(tools=self.tools).SerializeToString()

    def standing(self) -> Standing:
        """How it does."""
        in_flight = self.remote.counters.in_flight if self.remote is not None else 0
        return Standing(is_there=self._state == ServerState.SERVER_STATE_READY, in_flight=in_flight)

    def report(self) -> Server:
        """The server as clients see it, but for its error."""
        told = Server()
        told.CopyFrom(self.registration)
        told.state = self._state
        told.tool_names.extend(self.tool_names)
        if self._seen_ns:
            told.seen_time.CopyFrom(timestamp(self._seen_ns))
        return told

    async def keep(self, learn: Learn, clock: Clock, rng: Rng) -> None:
        """Stay connected: dial with growing, jittered delays, list the tools anew after each loss and now and then."""
        assert self.remote is not None
        tries = 0
        while True:
            if self._state == ServerState.SERVER_STATE_READY:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self.remote.lost()
            try:
                await learn(self, await self.remote.list_tools(CONNECT_SECONDS))
                self.reached(clock.now_ns())
                tries = 0
            except BehestError as error:
                self.failed(error)
                ceiling = min(_LAST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0**tries)
                tries += 1
                await asyncio.sleep(ceiling * (0.5 + rng.random() / 2))

    async def retire(self, closing: asyncio.Event) -> None:
        """Close the connection when the calls in flight have had their time, or the daemon stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await closing.wait()
        await self.close()

    async def close(self) -> None:
        """Close the connection at once."""
        if self.remote is not None:
            await self.remote.close()
