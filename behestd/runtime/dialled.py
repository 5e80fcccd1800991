"""One dialled server: its registration, the tools and models it was last known to list, and how the connection does.

Above: `registry`, which keeps a task for each. Below: `tools.remote` and `providers.remote`, on one connection. A
server that is not reached keeps what it lists, so that calls of runs that pinned it fail as not sent, and are tried
again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.model_pb2 import Model
from behest.v1.server_pb2 import Server, ServerOffer, ServerState, ServerTls
from behest.v1.tool_pb2 import Executed, Tool
from behestd.core.times import timestamp
from behestd.errors import BehestError, InvalidRequest, Unavailable
from behestd.providers.failure import ProviderFailure
from behestd.providers.listing import kept
from behestd.providers.remote import RemoteModels
from behestd.runtime.clock import Clock, Rng
from behestd.runtime.registered_models import offers_models
from behestd.tools.catalog import Standing
from behestd.tools.remote import Keep, RemoteServer, keep_nothing
from behestd.tools.remote_errors import not_sent
from behestd.tools.schema import Validators
from behestd.tools.tool import ToolFailure
from behestd.wire.endpoint import Rules, check
from behestd.wire.remote_channel import NO_TOKEN, Link, NotReached, Resolve, Tls, system_resolve

CONNECT_SECONDS = 5.0
REFRESH_SECONDS = 30.0
"""How often the offers of a server that is connected are listed again: also its sign of life."""
GRACE_SECONDS = 600.0
"""How long calls in flight may go on when their server is removed or replaced."""
_FIRST_DELAY_SECONDS = 0.1
_LAST_DELAY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server lists: tools and models as it knows them, without what changes from one moment to the next."""

    tools: tuple[Tool, ...] = ()
    models: tuple[Model, ...] = ()


_NOTHING = Listing()

Learn = Callable[["Dialled", Listing], Awaitable[None]]
"""Takes what a server lists now. Raises BehestError for what cannot be taken."""


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
        """Make the connection of a server. Raises as `link`."""
        return self.connect(self.link(server), validators)

    def link(self, server: Server) -> Link:
        """Say how to reach a server. Raises EndpointRefused, and InvalidRequest for secrets of TLS."""
        rules = self.rules
        if server.configured:
            rules = replace(rules, allow_loopback=True, allow_unix=True, allow_private=True)
        has_tls = server.HasField("tls")
        return Link(
            server_id=server.id,
            endpoint=check(server.address, rules, has_tls=has_tls),
            tls=self._tls(server.tls) if has_tls else None,
            token=partial(self.secrets, server.token_ref) if server.token_ref else NO_TOKEN,
            resolve=self.resolve,
            # Whom the configuration names, its operator answers for, and renews certificates as he likes.
            is_pinned=not server.configured,
            identity=server.identity,
        )

    def connect(self, link: Link, validators: Validators) -> RemoteServer:
        """Make a connection."""
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
    """A dialled server. `tool_names` and `model_ids` are as the catalogs have them, empty while not listed."""

    __slots__ = (
        "_seen_ns",
        "_state",
        "answering",
        "error",
        "is_offered",
        "listing",
        "model_ids",
        "namespace",
        "registration",
        "remote",
        "tool_names",
        "tried",
    )

    def __init__(
        self, namespace: str, registration: Server, remote: RemoteServer | None, listing: Listing = _NOTHING
    ) -> None:
        """`remote` is None for a server that may not be dialled."""
        self.namespace = namespace
        self.registration = registration
        self.remote = remote
        self.answering = RemoteModels(remote.line) if remote is not None else None
        self.listing = listing
        self.is_offered = False
        """Whether the catalogs have all that it lists."""
        self.tool_names: tuple[str, ...] = ()
        self.model_ids: tuple[str, ...] = ()
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

    def know(self) -> bool:
        """Take who was met at the first connection into the registration: whether that is new."""
        met = self.remote.line.identity if self.remote is not None else ""
        is_new = met != self.registration.identity
        self.registration.identity = met
        return is_new

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

    def is_as(self, registration: Server, link: Link) -> bool:
        """Whether a registration and the way to reach it say nothing new."""
        if self.remote is None or self.registration != registration:
            return False
        mine = self.remote.link
        return (mine.endpoint, mine.tls) == (link.endpoint, link.tls)

    def offered(self) -> Server:
        """The registration as its tools are offered."""
        return self.registration

    async def look(self) -> Listing:
        """List what it offers now. Raises ToolFailure, and EndpointRefused for its addresses and for who answers."""
        assert self.remote is not None
        assert self.answering is not None
        try:
            await self.remote.line.connect(CONNECT_SECONDS)
        except NotReached as exc:
            raise not_sent("TOOL_UNAVAILABLE", str(exc)) from exc
        has_tools = ServerOffer.SERVER_OFFER_TOOLS in self.registration.offers
        tools = await self.remote.list_tools(CONNECT_SECONDS) if has_tools else ()
        if not offers_models(self.registration):
            return Listing(tuple(tools))
        try:
            models = await self.answering.list_models(CONNECT_SECONDS)
        except ProviderFailure as failure:
            no = Executed.EXECUTED_NO
            raise ToolFailure(failure.failure_class, no, "TOOL_UNAVAILABLE", failure.message) from failure
        return Listing(tuple(tools), kept(models))

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
        told.model_ids.extend(self.model_ids)
        if self._seen_ns:
            told.seen_time.CopyFrom(timestamp(self._seen_ns))
        return told

    async def keep(self, learn: Learn, clock: Clock, rng: Rng) -> None:
        """Stay connected: dial with growing, jittered delays, list all anew after each loss and now and then."""
        assert self.remote is not None
        tries = 0
        while True:
            if self._state == ServerState.SERVER_STATE_READY:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self.remote.lost()
            try:
                await learn(self, await self.look())
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
