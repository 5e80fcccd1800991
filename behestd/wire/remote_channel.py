"""The connection to one dialled server: how it is made, how one waits for it, and who we say we are.

Above it `tools.remote`, `providers.remote` and all others that call a dialled server: whatever it offers, there is one
connection to it. A channel dials addresses that were checked, takes no advice from name services or proxies, follows
nobody elsewhere, retries nothing by itself, and reconnects within a second; a name is looked up and its addresses are
checked again before each new connection, and a server that a call registered must be who it was (`pin`). Whether a
connection stood is told apart from everything that comes after it, because it alone is proof that nothing was sent.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc

from behestd.wire.endpoint import Endpoint
from behestd.wire.pin import IdentityChanged, Unmet, meet

FRAME_LIMIT_BYTES = 4 * 1024 * 1024
RESULT_LIMIT_BYTES = 16 * 1024 * 1024
PROGRESS_LIMIT_BYTES = 16 * 1024 * 1024

_BACKOFF_MILLISECONDS = 1_000
_CERTIFICATES = 8
"""Of one server that are trusted at once: replicas behind one name have their own, and each is renewed."""
_STALE_SECONDS = 2.0
"""Longer than the longest backoff with its jitter."""

NO_TOKEN: Callable[[], str] = str


class NotReached(Exception):
    """Raised when a call cannot leave: proof that nothing of it was sent. The text says why, and may be shown."""


Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks up all IP addresses of a name. Raises OSError."""


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Look up a name as the system does. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


@dataclass(frozen=True, slots=True)
class Tls:
    """Resolved material of TLS, PEM. Empty: the system's authorities, no own certificate, the host of the address."""

    authorities: bytes = field(default=b"", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """How to reach one server, and how much of it is taken."""

    server_id: str
    endpoint: Endpoint
    tls: Tls | None = None
    token: Callable[[], str] = field(default=NO_TOKEN, repr=False)
    """Resolves the bearer token when a call is sent, so that a rotated one is used at once. Empty: none is sent."""
    frame_limit_bytes: int = FRAME_LIMIT_BYTES
    result_limit_bytes: int = RESULT_LIMIT_BYTES
    progress_limit_bytes: int = PROGRESS_LIMIT_BYTES
    """Of one call, all frames together."""
    resolve: Resolve = system_resolve
    is_pinned: bool = False
    """Whether a server with TLS stays who it was when it was first met."""
    identity: str = ""
    """Who it was. Empty: it was never met."""

    @property
    def name(self) -> str:
        """The name that the server's certificate must carry. Empty without TLS."""
        return (self.tls.server_name or self.endpoint.host) if self.tls is not None else ""


def open_channel(link: Link, target: str, trusted: bytes = b"") -> grpc.aio.Channel:
    """Make a channel to a target of the link's endpoint; it connects when first needed.

    `trusted` are the only certificates that the server may show, instead of whatever its authorities sign.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", _BACKOFF_MILLISECONDS),
        ("grpc.max_receive_message_length", link.frame_limit_bytes),
        ("grpc.max_send_message_length", link.frame_limit_bytes),
        ("grpc.max_metadata_size", 16 * 1024),
    ]
    is_name = not link.endpoint.target
    if link.tls is None:
        if is_name:
            options.append(("grpc.default_authority", f"{link.endpoint.host}:{link.endpoint.port}"))
        return grpc.aio.insecure_channel(target, options)
    if name := link.tls.server_name or (link.endpoint.host if is_name else ""):
        # Dialled is an address; who answers there must be who was meant.
        options.append(("grpc.ssl_target_name_override", name))
    credentials = grpc.ssl_channel_credentials(
        trusted or link.tls.authorities or None, link.tls.key or None, link.tls.certificate or None
    )
    return grpc.aio.secure_channel(target, credentials, options)


class Line:
    """The channel of one link, and another one in its place when a name has come to stand for other addresses."""

    __slots__ = ("_is_pinned", "_link", "_met", "_replaced", "_target", "channel", "identity")

    def __init__(self, link: Link) -> None:
        self._link = link
        self._target = link.endpoint.target
        self._met: tuple[bytes, ...] = ()
        self._replaced: grpc.aio.Channel | None = None
        self._is_pinned = link.is_pinned and link.tls is not None
        self.identity = link.identity
        """Who the server is, empty until it was met, and for one that is not pinned."""
        self.channel = open_channel(link, self._target) if self._target and not self._is_pinned else None
        """None until a name was looked up, and a server that is pinned was met."""

    async def connect(self, timeout_seconds: float) -> None:
        """Wait until a connection to a checked address stands. Returns at once when it does.

        Raises NotReached, EndpointRefused when the name stands for an address that may not be called, and
        IdentityChanged when somebody else answers there.
        """
        if self.channel is None or self.channel.get_state() is not grpc.ChannelConnectivity.READY:
            await self._look_up(timeout_seconds)
            if self._is_pinned:
                await self._meet(timeout_seconds)
        if self.channel is not None:
            await connect(self.channel, timeout_seconds)

    async def _look_up(self, timeout_seconds: float) -> None:
        """Look the name up, check what it stands for, and change the channel if that is not what is dialled."""
        endpoint = self._link.endpoint
        if endpoint.target:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                found = await self._link.resolve(endpoint.host, endpoint.port)
        except (OSError, TimeoutError, UnicodeError) as exc:
            raise NotReached("the name of the server cannot be looked up") from exc
        targets = endpoint.targets(found)
        channel = self.channel
        # A server that is pinned has a target and no channel while it was not met.
        state = channel.get_state() if channel is not None else None
        has_failed = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE or (state is None and bool(self._target))
        if self._target in targets and (len(targets) == 1 or not has_failed):
            return
        # After a failure it is the turn of the other family.
        place = targets.index(self._target) + 1 if self._target in targets else 0
        self._target = targets[place % len(targets)]
        if self._is_pinned:
            self.channel = None
        else:
            self.channel = open_channel(self._link, self._target)
        if channel is not None:
            await channel.close()

    async def _meet(self, timeout_seconds: float) -> None:
        """Meet who answers, and trust its certificate, and those that it showed last, and no other."""
        link = self._link
        assert link.tls is not None
        try:
            async with asyncio.timeout(timeout_seconds):
                met = await meet(_places(self._target), link.tls, link.name)
        except Unmet as exc:
            raise NotReached(str(exc)) from exc
        except TimeoutError as exc:
            text = f"no connection to the server within {timeout_seconds:g} s"
            raise NotReached(text) from exc
        if self.identity not in ("", met.identity):
            raise IdentityChanged(link.endpoint.address, self.identity, met.identity)
        self.identity = met.identity
        if self.channel is not None and met.certificate in self._met:
            return
        known = (certificate for certificate in self._met if certificate != met.certificate)
        self._met = (met.certificate, *known)[:_CERTIFICATES]
        # A server that was renewed lets go of its old connection when the calls on that have ended; so do we.
        before, self._replaced = self._replaced, self.channel
        self.channel = open_channel(link, self._target, b"".join(self._met))
        if before is not None:
            await before.close()

    def opened(self) -> grpc.aio.Channel:
        """The channel, connected once before. Raises NotReached."""
        if self.channel is None:
            raise NotReached("the server was never reached")
        return self.channel

    def token(self) -> str:
        """The bearer token as it is now, empty for none. Raises NotReached when it cannot be had."""
        try:
            return self._link.token()
        except (LookupError, OSError, ValueError) as exc:
            raise NotReached("the secret of the server cannot be read") from exc

    def metadata(self, own: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Join what a call says, empty values apart, with who we are. Raises NotReached."""
        pairs = tuple((key, value) for key, value in own if value)
        token = self.token()
        return (*pairs, ("authorization", f"Bearer {token}")) if token else pairs

    async def lost(self) -> None:
        """Wait until the connection that stands is gone. Returns at once when none does."""
        if self.channel is not None:
            await lost(self.channel)

    async def close(self, grace_seconds: float) -> None:
        """Close the connection."""
        for channel in (self._replaced, self.channel):
            if channel is not None:
                await channel.close(grace_seconds)


def _places(target: str) -> list[tuple[str, int]]:
    """The addresses and ports of a target."""
    pairs = (place.rpartition(":") for place in target.partition(":")[2].split(","))
    return [(host.strip("[]"), int(port)) for host, _, port in pairs]


async def connect(channel: grpc.aio.Channel, timeout_seconds: float) -> None:
    """Wait until a connection stands. Returns at once when it does.

    Raises NotReached as soon as a first attempt has failed, and when the time is over.
    """
    state = channel.get_state(try_to_connect=True)
    if state is grpc.ChannelConnectivity.READY:
        return
    # The transport keeps this state while it tries again and again, so a failure that is there already tells nothing
    # of now; the next try comes within its longest delay.
    is_stale = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
    limit_seconds = min(timeout_seconds, _STALE_SECONDS) if is_stale else timeout_seconds
    try:
        async with asyncio.timeout(limit_seconds):
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not is_stale:
                    raise NotReached("the server cannot be reached")
                if state is grpc.ChannelConnectivity.SHUTDOWN:
                    raise NotReached("the connection to the server is closed")
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError as exc:
        text = f"no connection to the server within {limit_seconds:g} s"
        raise NotReached(text) from exc


async def lost(channel: grpc.aio.Channel) -> None:
    """Wait until the connection that stands is gone. Returns at once when none does."""
    while channel.get_state() is grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
