"""Who is reached: names are pinned to the addresses that were judged, and the server must be who was meant."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.tools import ToolServer
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerState
from behest.v1.tool_pb2 import Executed, Tool, ToolPolicy
from behestd.tools.remote import RemoteServer
from behestd.tools.schema import Validators
from behestd.tools.tool import ToolFailure
from behestd.wire.endpoint import EndpointRefused, Rules, allow_list, check
from behestd.wire.remote_channel import Link, Tls
from tests import ports
from tests.daemon_process import running
from tests.daemons import refused, serve
from tests.runs.scenes import IDEMPOTENT, OPEN, events_of, only
from tests.tools.calls import call, nowhere

LOCAL = Rules(allow_loopback=True)


@dataclass
class Names:
    """A name service of the test's own, whose answers change."""

    answers: list[Sequence[str] | OSError]
    asked: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Give the next answer, the last one over and over."""
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


@asynccontextmanager
async def remote(address: str, names: Names, rules: Rules = LOCAL, **link: Any) -> AsyncIterator[RemoteServer]:
    endpoint = check(address, rules, has_tls=link.get("tls") is not None)
    server = RemoteServer(Link("server-1", endpoint, resolve=names.resolve, **link), Validators())
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def counting(*hosts: str) -> AsyncIterator[tuple[int, list[str]]]:
    """Listen on one port of some addresses and note who is connected to; nobody is answered."""
    met: list[str] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer.get_extra_info("sockname")[0])
        writer.close()

    servers = [await asyncio.start_server(serve_one, hosts[0], 0)]
    port = servers[0].sockets[0].getsockname()[1]
    servers += [await asyncio.start_server(serve_one, host, port) for host in hosts[1:]]
    try:
        yield port, met
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()


def tool_server(**options: Any) -> ToolServer:
    server = ToolServer(**options)
    server.tool(name="t")(lambda: "in")
    return server


async def failed(server: RemoteServer) -> ToolFailure:
    with pytest.raises(ToolFailure) as caught:
        await server.bind(Tool(name="t")).call(call(), nowhere)
    return caught.value


# --- names ---


async def test_the_address_that_was_judged_is_the_one_that_is_dialled() -> None:  # C024, S8
    """The name changes between the look-up and the connection: nobody asks again, so nothing follows from it."""
    names = Names([["127.0.0.1"], ["127.0.0.2"]])
    async with tool_server() as server:
        port = await server.serve("127.0.0.1:0")
        async with counting("127.0.0.3") as (_, met), remote(f"localhost:{port}", names) as reached:
            assert [tool.name for tool in await reached.list_tools()] == ["t"]
            for _ in range(3):
                await reached.bind(Tool(name="t")).call(call(), nowhere)
            assert names.asked == ["localhost"]
            assert met == []


@pytest.mark.parametrize(
    "answer", [["10.0.0.1"], ["169.254.169.254"], ["127.0.0.1", "192.168.0.1"], ["::ffff:10.0.0.1"], []]
)
async def test_a_name_that_turns_bad_is_not_dialled_again(answer: list[str]) -> None:  # C024, S8
    names = Names([["127.0.0.1"], answer])
    async with remote("localhost:1", names) as reached:
        assert (await failed(reached)).failure_class == FailureClass.FAILURE_CLASS_NOT_SENT
        refusal = await failed(reached)
        assert (refusal.reason, refusal.executed) == ("TOOL_ENDPOINT_REFUSED", Executed.EXECUTED_NO)
        assert refusal.failure_class == FailureClass.FAILURE_CLASS_PERMANENT
        with pytest.raises(EndpointRefused):
            await reached.list_tools()


async def test_a_server_that_moves_is_found_at_its_new_address() -> None:  # C024, S8
    names = Names([["127.0.0.1"]])
    async with tool_server() as first:
        port = await first.serve(ports.address())
        async with remote(f"localhost:{port}", names) as reached:
            await reached.list_tools()
            await first.stop(0)
            async with tool_server() as second:
                await second.serve(f"127.0.0.2:{port}")
                names.answers = [["127.0.0.2"]]
                async with asyncio.timeout(20):
                    await reached.lost()
                    assert [tool.name for tool in await reached.list_tools()] == ["t"]


async def test_both_families_of_a_name_get_their_turn() -> None:
    async with tool_server() as server:
        port = await server.serve("127.0.0.1:0")
        async with remote(f"localhost:{port}", Names([["::1", "127.0.0.1"]])) as reached, asyncio.timeout(20):
            while True:
                try:
                    assert [tool.name for tool in await reached.list_tools()] == ["t"]
                    break
                except ToolFailure as failure:
                    assert failure.failure_class == FailureClass.FAILURE_CLASS_NOT_SENT


async def test_a_name_that_cannot_be_looked_up_is_not_sent() -> None:
    async with remote("localhost:1", Names([OSError("no such name")])) as reached:
        unsent = await failed(reached)
        assert (unsent.failure_class, unsent.executed) == (FailureClass.FAILURE_CLASS_NOT_SENT, Executed.EXECUTED_NO)
        assert not await reached.bind(Tool(name="t")).cancel("key-1", 1)


# --- identity ---


def certificates(folder: Path, *names: str) -> dict[str, bytes]:
    """Make an authority, and a certificate signed by it for each name."""
    made: dict[str, bytes] = {}
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    _openssl(folder, "req", "-x509", *key, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
    for name in names:
        (folder / "san").write_text(f"subjectAltName=DNS:{name}")
        # The name of the subject is no identity, whatever it says.
        _openssl(folder, "req", *key, "-subj", "/CN=tools.test", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"]
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
    for path in folder.glob("*.*"):
        made[path.name] = path.read_bytes()
    return made


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def identity(pem: dict[str, bytes], name: str) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(pem[f"{name}.key"], pem[f"{name}.crt"])])


async def test_the_certificate_must_be_for_the_name_that_was_registered_and_not_for_what_it_stands_for(
    tmp_path: Path,
) -> None:  # S7
    pem = certificates(tmp_path, "tools.test", "other.test")
    rules = Rules(allowed=allow_list(["127.0.0.0/8"]))
    tokens: list[str] = []

    def token() -> str:
        tokens.append("sent")
        return "secret"

    for name, is_in in (("tools.test", True), ("other.test", False)):
        async with tool_server(credentials=identity(pem, name)) as server:
            port = await server.serve("127.0.0.1:0")
            link: dict[str, Any] = {"tls": Tls(pem["ca.crt"]), "token": token}
            async with remote(f"tools.test:{port}", Names([["127.0.0.1"]]), rules, **link) as reached:
                if is_in:
                    answer = await reached.bind(Tool(name="t")).call(call(), nowhere)
                    assert answer.parts[0].text.text == "in"
                    tokens.clear()
                else:
                    assert (await failed(reached)).failure_class == FailureClass.FAILURE_CLASS_NOT_SENT
    # Who is not who was meant is not even told the token.
    assert tokens == []


async def test_a_certificate_that_was_swapped_or_is_of_another_authority_ends_the_trust(tmp_path: Path) -> None:  # S7
    (tmp_path / "evil").mkdir()
    pem = certificates(tmp_path, "tools.test", "other.test")
    evil = certificates(tmp_path / "evil", "tools.test")
    rules = Rules(allowed=allow_list(["127.0.0.0/8"]))
    async with tool_server(credentials=identity(pem, "tools.test")) as server:
        port = await server.serve(ports.address())
        names = Names([["127.0.0.1"]])
        async with remote(f"tools.test:{port}", names, rules, tls=Tls(pem["ca.crt"])) as reached:
            await reached.list_tools()
            await server.stop(0)
            # A connection that ends may take a call with it, of which nobody knows whether it was sent.
            await failed(reached)
            for credentials in (identity(evil, "tools.test"), identity(pem, "other.test"), None):
                async with tool_server(credentials=credentials) as impostor:
                    await impostor.serve(f"127.0.0.1:{port}")
                    unsent = await failed(reached)
                    assert unsent.failure_class == FailureClass.FAILURE_CLASS_NOT_SENT


async def test_an_address_in_numbers_needs_a_certificate_for_it_or_a_name_to_expect(tmp_path: Path) -> None:
    pem = certificates(tmp_path, "tools.test")
    rules = Rules(allowed=allow_list(["127.0.0.1"]))
    async with tool_server(credentials=identity(pem, "tools.test")) as server:
        port = await server.serve("127.0.0.1:0")
        async with remote(f"127.0.0.1:{port}", Names([[]]), rules, tls=Tls(pem["ca.crt"])) as reached:
            assert (await failed(reached)).failure_class == FailureClass.FAILURE_CLASS_NOT_SENT
        expected = Tls(pem["ca.crt"], server_name="tools.test")
        async with remote(f"127.0.0.1:{port}", Names([[]]), rules, tls=expected) as reached:
            assert [tool.name for tool in await reached.list_tools()] == ["t"]


# --- no other way ---


class Redirector:
    """Speaks as little HTTP/2 as it takes to answer a call with 302 and a location."""

    def __init__(self, location: str) -> None:
        self.location = location.encode()
        self.redirected = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writers.append(writer)
        try:
            await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        await reader.readexactly(24)
        kind, head = 0, b""
        while kind != 1:
            head = await reader.readexactly(9)
            kind = head[3]
            await reader.readexactly(int.from_bytes(head[:3], "big"))
        headers = b"\x08\x03302" + b"\x00\x08location" + bytes([len(self.location)]) + self.location
        writer.write(len(headers).to_bytes(3, "big") + b"\x01\x05" + head[5:] + headers)
        self.redirected += 1
        while await reader.read(1024):
            pass


async def test_a_redirection_is_not_followed() -> None:  # C024, S8
    async with counting("127.0.0.1") as (elsewhere, met):
        redirector = Redirector(f"http://127.0.0.1:{elsewhere}/")
        front = await asyncio.start_server(redirector.serve, "127.0.0.1", 0)
        async with front, asyncio.timeout(20):
            port = front.sockets[0].getsockname()[1]
            async with remote(f"127.0.0.1:{port}", Names([[]])) as reached:
                broken = await failed(reached)
            for writer in redirector.writers:
                writer.transport.abort()
            await asyncio.wait(redirector.tasks)
        assert redirector.redirected == 1
        assert broken.executed == Executed.EXECUTED_UNKNOWN
        assert "302" in broken.message
        assert met == []


async def test_no_proxy_of_the_environment_comes_between(tmp_path: Path) -> None:  # C024, S8
    async with counting("127.0.0.1") as (proxy, met), tool_server() as server:
        port = await server.serve("127.0.0.1:0")
        names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
        env = dict.fromkeys((*names, *map(str.upper, names)), f"http://127.0.0.1:{proxy}") | {"no_proxy": ""}
        async with running(tmp_path, env=env) as daemon:
            script = (
                "import asyncio, sys\n"
                "from behest.client import Client\n"
                "from behest.v1.server_pb2 import Server\n"
                "async def main():\n"
                "    async with Client(sys.argv[1]) as client:\n"
                "        asked = Server(name='t', address=sys.argv[2], connection=1, offers=[1])\n"
                "        print(list((await client.servers.register(asked)).tool_names))\n"
                "asyncio.run(main())\n"
            )
            command = [sys.executable, "-c", script, daemon.address, f"localhost:{port}"]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            async with asyncio.timeout(60):
                output, _ = await process.communicate()
        assert output.decode().strip() == "['t']"
        assert met == []


# --- the daemon ---


def registration(address: str, **fields: Any) -> Server:
    return Server(
        name="server",
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address=address,
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
        **fields,
    )


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("10.0.0.1:443", "plaintext"),
        ("169.254.169.254:80", "plaintext"),
        ("tools.example.org:443", "plaintext"),
        ("unix:/run/docker.sock", "unix:"),
        ("0.0.0.0:1", "not the address of a server"),
        ("xds:///tools", "HOST:PORT"),
    ],
)
async def test_a_daemon_refuses_a_registration_by_the_rule(address: str, rule: str) -> None:
    async with serve() as served:
        error = await refused(served.client.servers.register(registration(address)))
        assert error.reason == "TOOL_ENDPOINT_REFUSED"
        assert rule in error.metadata["rule"]
        assert [server async for server in served.client.servers.list()] == []


@pytest.mark.parametrize(
    "found", [["10.0.0.1"], ["169.254.169.254"], ["8.8.8.8", "127.0.0.1", "192.168.0.1"], ["fd00::1"]]
)
async def test_a_daemon_refuses_a_name_for_what_it_stands_for(found: list[str]) -> None:  # S8
    async with serve(resolve=Names([found]).resolve) as served:
        asked = registration("tools.example.org:443")
        asked.tls.server_name = "tools.example.org"
        error = await refused(served.client.servers.register(asked))
        assert error.reason == "TOOL_ENDPOINT_REFUSED"
        assert not any(address in str(error) for address in found)
        assert [server async for server in served.client.servers.list()] == []


async def test_a_daemon_refuses_what_is_not_on_the_operators_list() -> None:  # S8
    async with serve(endpoints=allow_list(["*.tools.test"]), resolve=Names([OSError()]).resolve) as served:
        asked = registration("evil.test:443")
        asked.tls.server_name = "evil.test"
        error = await refused(served.client.servers.register(asked))
        assert (error.reason, error.metadata["rule"]) == (
            "TOOL_ENDPOINT_REFUSED",
            "it is not on the list of what is allowed",
        )
        asked.address = "a.tools.test:443"
        server = await served.client.servers.register(asked)
        assert server.state == ServerState.SERVER_STATE_CONNECTING


async def test_a_run_is_told_that_a_name_has_turned_bad_and_nothing_is_sent() -> None:  # S8
    names = Names([["127.0.0.1"]])
    async with serve(operator=OPEN, resolve=names.resolve) as served:
        async with tool_server() as server:
            port = await server.serve("127.0.0.1:0")
            asked = registration(
                f"localhost:{port}", tool_policies={"t": ToolPolicy(side_effect=IDEMPOTENT.side_effect)}
            )
            registered = await served.client.servers.register(asked)
            await events_of(await served.client.run("/tool t {} /next /say done"))
            names.answers = [["10.0.0.1"]]
        async with asyncio.timeout(30):
            while True:
                told = await served.client.servers.get(registered.id)
                if told.state == ServerState.SERVER_STATE_DEGRADED:
                    break
                await asyncio.sleep(0.02)
        events = await events_of(await served.client.run("/tool t {} /next /say done"))
        (broke,) = only(events, "tool_failed")
        assert (broke.reason, broke.executed) == ("TOOL_ENDPOINT_REFUSED", Executed.EXECUTED_NO)
