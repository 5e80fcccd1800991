"""Addresses that callers want dialled: each is refused before a byte leaves, or stands for nothing but itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behestd.runtime.dialled import Dialling
from behestd.tools.schema import Validators
from behestd.wire.endpoint import EndpointRefused, Rules
from tests.daemons import refused, serve, writes

TARGETS = [
    # This machine, in every way in which some resolver somewhere reads it.
    "127.0.0.1", "127.1", "127.0.1", "127.000.000.001", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1",
    "017700000001",
    "0177.0.0.1", "0177.0.0.01", "127.0.0.0x1", "127.0.0.1.", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::1%lo]",
    "localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "0.0.0.0", "0", "[::]", "127.0.0.1%00.evil.test",
    "①②⑦.⓪.⓪.①", "127。0。0。1", "①27.0.0.1",
    # Where clouds tell machines their secrets.
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    "169.254.170.2", "[fe80::a9fe:a9fe]", "[fe80::1%eth0]",
    # The neighbours.
    "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1", "[fc00::1]", "[fd12::1]", "[fec0::1]",
    "[::ffff:10.0.0.1]", "[2002:a00:1::]", "[2001:0:a00:1::]", "224.0.0.1", "[ff02::1]", "255.255.255.255", "240.0.0.1",
    # What the transport could take for something else than a host.
    "unix:/run/docker.sock", "unix-abstract:x", "xds:///x", "dns:///169.254.169.254", "dns://127.0.0.1/x", "file:///etc",
    "http://127.0.0.1", "ipv4:127.0.0.1", "ipv6:[::1]", "vsock:1:2", "passthrough:///127.0.0.1", "user@127.0.0.1",
    "evil.test#@127.0.0.1", "evil.test/127.0.0.1", "evil.test,127.0.0.1", "evil.test 127.0.0.1", "evil.test\n127.0.0.1",
    "evil.test\t", "google-c2p:///x", "", " ", "-", "a" * 300,
]  # fmt: skip


def registration(host: str, port: int) -> Server:
    server = Server(
        name="server",
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address=f"{host}:{port}",
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
    )
    # With TLS, so that it is the address that is refused and not that it is plain.
    server.tls.server_name = "tools.test"
    return server


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[str]]]:
    """Listen on this machine, and note whoever comes."""
    met: list[str] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(str(writer.get_extra_info("peername")))
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], met


@pytest.mark.parametrize("host", TARGETS)
def test_no_spelling_of_a_place_that_is_not_public_may_be_registered(host: str) -> None:  # S8 C024
    """Beyond local mode, by the rule and without looking anything up."""
    asked: list[str] = []

    async def resolve(name: str, port: int) -> list[str]:
        asked.append(name)
        return ["8.8.8.8"]

    dialling = Dialling(lambda reference: "", Rules(), resolve=resolve)
    with pytest.raises(EndpointRefused) as found:
        dialling.dial(registration(host, 443), Validators())
    assert found.value.reason == "TOOL_ENDPOINT_REFUSED"
    assert len(found.value.metadata["endpoint"]) <= 128
    assert asked == []


async def test_nothing_is_dialled_looked_up_or_kept_for_a_target_that_is_refused() -> None:  # S8 C024
    """Over the wire, where loopback itself is allowed, and nothing else is."""
    asked: list[str] = []

    async def resolve(name: str, port: int) -> list[str]:
        asked.append(name)
        return ["127.0.0.1"]

    allowed = {"127.0.0.1", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost"}
    allowed |= {"LOCALHOST", "localhost.localdomain"}
    async with listening() as (port, met), serve(resolve=resolve) as served:
        before = writes(served)
        for host in TARGETS:
            if host not in allowed and "\x00" not in host:
                error = await refused(served.client.servers.register(registration(host, port)))
                assert error.reason in ("TOOL_ENDPOINT_REFUSED", "REQUEST_TOO_LARGE"), host
        assert [server async for server in served.client.servers.list()] == []
        assert writes(served) == before
    assert (asked, met) == ([], [])


@pytest.mark.parametrize(
    "second", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]
)
async def test_a_name_service_that_changes_its_answer_gains_nothing(second: str) -> None:  # S8 C024
    """A good answer when it is judged, a bad one when it is dialled: there is one answer, and each is judged."""
    answers = [["8.8.8.8", second], [second], [second, "8.8.8.8"]]

    async def resolve(name: str, port: int) -> list[str]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async with listening() as (port, met):
        remote = Dialling(lambda reference: "", Rules(), resolve=resolve).dial(
            registration("tools.test", port), Validators()
        )
        for _ in range(4):
            with pytest.raises(EndpointRefused):
                await remote.list_tools(1.0)
        await remote.close()
    assert met == []
