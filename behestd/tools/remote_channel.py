"""The connection to one dialled tool server: how it is made, and how one waits for it.

Above it `remote`. A channel dials one checked target, takes no advice from name services or proxies, retries nothing by
itself, and reconnects within a second. Whether a connection stood is told apart from everything that comes after it,
because it alone is proof that nothing was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from behestd.tools import remote_errors

FRAME_LIMIT_BYTES = 4 * 1024 * 1024
RESULT_LIMIT_BYTES = 16 * 1024 * 1024
PROGRESS_LIMIT_BYTES = 16 * 1024 * 1024

_BACKOFF_MILLISECONDS = 1_000
_STALE_SECONDS = 2.0
"""Longer than the longest backoff with its jitter."""

NO_TOKEN: Callable[[], str] = str


@dataclass(frozen=True, slots=True)
class Tls:
    """Resolved material of TLS, PEM. Empty: the system's authorities, no own certificate, the host of the address."""

    authorities: bytes = field(default=b"", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """How to reach one server, and how much of it is taken. `target` comes from `endpoint.target`."""

    server_id: str
    target: str
    tls: Tls | None = None
    token: Callable[[], str] = field(default=NO_TOKEN, repr=False)
    """Resolves the bearer token when a call is sent, so that a rotated one is used at once. Empty: none is sent."""
    frame_limit_bytes: int = FRAME_LIMIT_BYTES
    result_limit_bytes: int = RESULT_LIMIT_BYTES
    progress_limit_bytes: int = PROGRESS_LIMIT_BYTES
    """Of one call, all frames together."""


def open_channel(link: Link) -> grpc.aio.Channel:
    """Make the channel of a link; it connects when first needed."""
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
    if link.tls is None:
        return grpc.aio.insecure_channel(link.target, options)
    if link.tls.server_name:
        options.append(("grpc.ssl_target_name_override", link.tls.server_name))
    credentials = grpc.ssl_channel_credentials(
        link.tls.authorities or None, link.tls.key or None, link.tls.certificate or None
    )
    return grpc.aio.secure_channel(link.target, credentials, options)


async def connect(channel: grpc.aio.Channel, timeout_seconds: float) -> None:
    """Wait until a connection stands. Returns at once when it does.

    Raises ToolFailure, NOT_SENT, as soon as a first attempt has failed, and when the time is over.
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
                    raise remote_errors.not_sent("TOOL_UNAVAILABLE", "the server cannot be reached")
                if state is grpc.ChannelConnectivity.SHUTDOWN:
                    raise remote_errors.not_sent("TOOL_UNAVAILABLE", "the connection to the server is closed")
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError as exc:
        text = f"no connection to the server within {limit_seconds:g} s"
        raise remote_errors.not_sent("TOOL_UNAVAILABLE", text) from exc


async def lost(channel: grpc.aio.Channel) -> None:
    """Wait until the connection that stands is gone. Returns at once when none does."""
    while channel.get_state() is grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
