"""The MCP commands over TLS: to the daemon, from daemons that dial, and for HTTP clients."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.order import duration
from behest.v1.registry_service_pb2 import AttachServerRequest, AttachServerResponse, AttachWelcome
from behest.v1.registry_service_pb2_grpc import RegistryServiceServicer, add_RegistryServiceServicer_to_server
from behest.v1.tool_service_pb2 import ListToolsRequest
from behest.v1.tool_service_pb2_grpc import ToolServiceStub
from tests.mcp.scenes import SECONDS, Ledger, behest, ended, stdio_server

pytestmark = pytest.mark.timeout(240)

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Registry(RegistryServiceServicer):
    """The daemon's side of an attachment: it welcomes who comes, and keeps what it said."""

    def __init__(self) -> None:
        self.hellos: list[AttachServerRequest] = []

    async def AttachServer(self, requests: AsyncIterator[AttachServerRequest], context: Any) -> None:  # type: ignore[override]
        """Welcome the server, and listen until it leaves."""
        self.hellos.append(await anext(requests))
        welcome = AttachWelcome(lease_id="lease-1", heartbeat=duration(15), max_frame_bytes=4 * 1024 * 1024)
        await context.write(AttachServerResponse(welcome=welcome))
        async for _ in requests:
            pass


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and the certificates of a server and a client that it signed."""
    folder = tmp_path_factory.mktemp("pems")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
    for name in ("server", "client"):
        openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
    return folder


def channel_credentials(pems: Path, name: str = "") -> grpc.ChannelCredentials:
    """What a client connects with: the authority, and a certificate of its own if it has one."""
    key, cert = ((pems / f"{name}.{kind}").read_bytes() if name else None for kind in ("key", "crt"))
    return grpc.ssl_channel_credentials((pems / "ca.crt").read_bytes(), key, cert)


async def test_a_bridge_attaches_and_listens_over_mutual_tls(pems: Path, tmp_path: Path) -> None:  # N18
    registry = Registry()
    daemon = grpc.aio.server()
    add_RegistryServiceServicer_to_server(registry, daemon)
    pair = ((pems / "server.key").read_bytes(), (pems / "server.crt").read_bytes())
    mutual = grpc.ssl_server_credentials([pair], (pems / "ca.crt").read_bytes(), require_client_auth=True)
    target = f"127.0.0.1:{daemon.add_secure_port('127.0.0.1:0', mutual)}"
    await daemon.start()
    shown = ("--ca", f"{pems}/ca.crt", "--cert", f"{pems}/client.crt", "--key", f"{pems}/client.key")
    listening = ("--listen", "127.0.0.1:0", "--listen-ca", f"{pems}/ca.crt")
    own = ("--listen-cert", f"{pems}/server.crt", "--listen-key", f"{pems}/server.key")
    order = ("mcp-bridge", "--name", "example", "--target", target, *shown, *listening, *own)
    try:
        async with behest(*order, "--", *stdio_server(Ledger(tmp_path / "ledger"))) as command:
            address = (await command.ready())["address"]
            assert (await command.ready())["name"] == "example"
            async with grpc.aio.secure_channel(address, channel_credentials(pems, "client")) as known:
                listed = await ToolServiceStub(known).ListTools(ListToolsRequest(), timeout=SECONDS)
            async with grpc.aio.secure_channel(address, channel_credentials(pems)) as stranger:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ToolServiceStub(stranger).ListTools(ListToolsRequest(), timeout=SECONDS)
    finally:
        await daemon.stop(0)
    assert [hello.hello.server_name for hello in registry.hellos] == ["example"]
    assert len(listed.tools) > 0
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_http_clients_are_served_over_tls(pems: Path) -> None:  # N18
    own = ("--http-cert", f"{pems}/server.crt", "--http-key", f"{pems}/server.key")
    async with behest("mcp-serve", "--target", "127.0.0.1:1", "--http", "127.0.0.1:0", *own) as command:
        url = (await command.ready())["url"]
        assert url.startswith("https://127.0.0.1:")
        port = int(url.removeprefix("https://127.0.0.1:").partition("/")[0])
        trust = ssl.create_default_context(cafile=pems / "ca.crt")
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
            writer.write(b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 4")


async def test_options_that_lack_their_other_half_are_refused(pems: Path) -> None:
    bridge = ("mcp-bridge", "--name", "n", "--listen", "127.0.0.1:0", "--url", "http://127.0.0.1:1/mcp")
    for wrong in (
        [*bridge, "--cert", f"{pems}/client.crt"],
        [*bridge, "--listen-cert", f"{pems}/server.crt"],
        [*bridge, "--listen-ca", f"{pems}/ca.crt"],
        ["mcp-serve", "--http", "127.0.0.1:0", "--http-cert", f"{pems}/server.crt"],
        ["mcp-serve", "--http-cert", f"{pems}/server.crt", "--http-key", f"{pems}/server.key"],
    ):
        assert (await ended(*wrong))[0] == 2, wrong
