"""How a client shows who it is, and knows whom it talks to: tokens and TLS.

Above: `channel`. Below: grpc.aio. A token is metadata of each call; it leaves only over TLS, or to this machine.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

Pem = bytes | str | Path
"""A PEM text, or the path of a file that holds one."""


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS to a daemon: `ca` are the authorities that may sign its certificate (None: those that grpc brings along).

    `certificate` and `key` are shown to it, both or neither; `server_name` is what its certificate must carry, if that
    is not the host of the address.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files, and return what grpc connects with. Raises OSError, and ValueError for half a pair."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key come together")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))

    def options(self) -> tuple[tuple[str, str], ...]:
        """Return the options of the channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


def check_token(token: str, address: str, *, has_tls: bool) -> None:
    """See that a token may be sent there. Raises ValueError, without the token."""
    if token and not has_tls and not is_local(address):
        raise ValueError(f"a token is sent only over TLS or to this machine, and {address} is neither")
    if not token.isascii() or not token.isprintable():
        raise ValueError("the token holds characters that no token has")


def is_local(address: str) -> bool:
    """Tell whether an address is a Unix socket or one of loopback."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TokenChannel(grpc.aio.Channel):
    """A channel whose calls all bring a token. It is not an interceptor: those cost a task for each stream."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._own = (("authorization", f"Bearer {token}"),)

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        """Return a method of a request and a response."""
        return self._bringing(self._channel.unary_unary(*arguments, **named))

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        """Return a method of a request and a stream of responses."""
        return self._bringing(self._channel.unary_stream(*arguments, **named))

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        """Return a method of a stream of requests and a response."""
        return self._bringing(self._channel.stream_unary(*arguments, **named))

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        """Return a method of two streams."""
        return self._bringing(self._channel.stream_stream(*arguments, **named))

    def _bringing(self, method: Any) -> Any:
        own = self._own

        def call(*arguments: Any, metadata: Any = (), **named: Any) -> Any:
            return method(*arguments, metadata=(*(metadata or ()), *own), **named)

        return call

    async def close(self, grace: float | None = None) -> None:
        """Close the channel."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the state of the connection."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait for another state."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the connection stands."""
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> bool | None:
        await self.close()
        return None


def _read(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()
