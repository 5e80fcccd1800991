"""Registered tool servers over real channels: dialling, durability, loss and return, refusals, daemon to daemon."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.tools import Context, ToolServer
from behest.v1.message_pb2 import Role
from behest.v1.registry_service_pb2 import (
    GetServerRequest,
    ListServersRequest,
    RegisterServerRequest,
    UnregisterServerRequest,
)
from behest.v1.registry_service_pb2_grpc import RegistryServiceStub
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerState, ServerTls
from behest.v1.tool_pb2 import SideEffect, Tool, ToolPolicy
from behest.v1.tool_service_pb2 import CallToolRequest, ListToolsRequest, ListToolsResponse
from behest.v1.tool_service_pb2_grpc import ToolServiceStub
from behestd.core.times import duration
from behestd.service.registry import Servers
from behestd.service.scopes import Caller
from behestd.service.settings import Settings
from behestd.service.tools import Tools
from tests import ports
from tests.daemons import Served, refused, serve
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE, Ledger, text_of, tools
from tests.service.edges import connect, failure, metadata, reason, serving

EXAMPLE = Path(__file__).parents[1] / "example_tools.py"
READY = ServerState.SERVER_STATE_READY


def registration(port: int, name: str = "files", **more: Any) -> Server:
    fields: dict[str, Any] = {
        "name": name,
        "connection": ServerConnection.SERVER_CONNECTION_DIALLED,
        "address": f"127.0.0.1:{port}",
        "offers": [ServerOffer.SERVER_OFFER_TOOLS],
    }
    return Server(**(fields | more))


@asynccontextmanager
async def tool_server(port: int = 0, *, name: str = "double", token: str = "") -> AsyncIterator[int]:
    """Serve one tool under a name, on a port; gives the port."""

    async def double(context: Context, number: int) -> int:
        context.progress("doubling")
        return number * 2

    server = ToolServer(token=token)
    server.tool(name=name, description="Double a number.")(double)
    async with server:
        yield await server.serve(f"127.0.0.1:{port or ports.reserved()}")


async def until_state(served: Served, server_id: str, state: ServerState.ValueType) -> Server:
    async with asyncio.timeout(30):
        while (server := await served.client.servers.get(server_id)).state != state:
            await asyncio.sleep(0.02)
    return server


async def test_a_registered_servers_tools_are_listed_called_and_used_by_runs() -> None:  # C024 C026
    policies = {"math_*": PURE}
    async with tool_server() as port, serve() as served:
        asked = registration(port, "math", name_prefix="math_", tool_policies=policies, labels={"team": "a"})
        server = await served.client.servers.register(asked)
        assert (server.state, list(server.tool_names)) == (READY, ["math_double"])
        assert server.HasField("seen_time")
        assert not server.HasField("error")
        tool = await served.client.tools.get("math_double")
        assert tool.server_id == server.id
        assert tool.policy.side_effect == SideEffect.SIDE_EFFECT_PURE
        result = await served.client.tools.call("math_double", '{"number": 21}')
        assert result.parts[0].json.json == "42"
        run = await served.client.run('/tool math_double {"number": 4}')
        async with asyncio.timeout(30):
            output = await run.result()
        assert "math_double: 8" in output.text
        assert await served.client.servers.get(server.id) == server
        assert [found.name async for found in served.client.servers.list()] == ["math"]


async def test_a_tool_without_a_policy_is_non_idempotent_whatever_its_server_says() -> None:
    async with tool_server() as port, serve() as served:
        policies = {"double": ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_IDEMPOTENT)}
        asked = registration(port, tool_policies=policies, dedupe_retention=duration(3600))
        await served.client.servers.register(asked)
        assert (await served.client.tools.get("double")).policy.side_effect == 4
        asked.dedupe_retention.CopyFrom(duration(48 * 3600))
        await served.client.servers.register(asked, replace=True)
        assert (await served.client.tools.get("double")).policy.side_effect == 2


async def test_the_same_registration_again_is_answered_and_another_one_needs_replace() -> None:
    async with tool_server() as port, tool_server(name="triple") as other, serve() as served:
        stub = served.client.stubs.registry
        first = await stub.RegisterServer(RegisterServerRequest(server=registration(port)))
        again = await stub.RegisterServer(RegisterServerRequest(server=registration(port)))
        assert (first.replayed, again.replayed) == (False, True)
        assert again.server.id == first.server.id
        error = await failure(stub.RegisterServer(RegisterServerRequest(server=registration(other))))
        assert (reason(error), metadata(error)["name"]) == ("TOOL_SERVER_NAME_TAKEN", "files")
        replaced = await stub.RegisterServer(RegisterServerRequest(server=registration(other), replace=True))
        assert (replaced.replayed, replaced.server.id) == (False, first.server.id)
        assert replaced.server.create_time == first.server.create_time
        assert [tool.name async for tool in served.client.tools.list()] == ["triple"]


async def test_two_servers_share_a_name_only_with_the_same_definition() -> None:  # C026
    async with tool_server() as port, tool_server() as replica, serve() as served:

        async def different(number: str) -> str:
            """Double a number."""
            return number

        clash = ToolServer()
        clash.tool(name="double")(different)
        async with clash:
            third = await clash.serve("127.0.0.1:0")
            first = await served.client.servers.register(registration(port, "one"))
            await served.client.servers.register(registration(replica, "two"))
            stub = served.client.stubs.registry
            request = RegisterServerRequest(server=registration(third, "three"))
            error = await failure(stub.RegisterServer(request))
            assert (reason(error), metadata(error)["tool"]) == ("TOOL_NAME_TAKEN", "double")
            assert metadata(error)["serverId"] == first.id
            assert [found.name async for found in served.client.servers.list()] == ["one", "two"]
            prefixed = registration(third, "three", name_prefix="x_")
            assert list((await served.client.servers.register(prefixed)).tool_names) == ["x_double"]


async def test_a_replacement_that_is_refused_changes_nothing() -> None:
    async with tool_server() as port, tool_server(name="taken") as other, serve(operator=OPEN) as served:
        await served.client.servers.register(registration(port, "one"))
        await served.client.servers.register(registration(other, "two"))
        clash = ToolServer()

        async def taken(x: int) -> int:
            return x

        clash.tool(taken)
        async with clash:
            third = await clash.serve("127.0.0.1:0")
            error = await refused(served.client.servers.register(registration(third, "one"), replace=True))
        assert error.reason == "TOOL_NAME_TAKEN"
        assert (await served.client.tools.call("double", '{"number": 1}')).is_error is False


async def test_a_server_with_a_bad_schema_or_name_is_refused_whole() -> None:
    class Bad(grpc.GenericRpcHandler):  # type: ignore[misc]
        def __init__(self, tool: Tool) -> None:
            self.tool = tool

        def service(self, handler_call_details: Any) -> Any:
            async def answer(request: bytes, context: Any) -> bytes:
                return ListToolsResponse(tools=[self.tool]).SerializeToString()

            return grpc.unary_unary_rpc_method_handler(answer)

    async with serve() as served:
        for tool, expected in (
            (Tool(name="ok", input_schema_json='{"type": 7}'), "TOOL_SCHEMA_INVALID"),
            (Tool(name="ok", input_schema_json='{"type": "object", "$ref": "http://x/"}'), "TOOL_SCHEMA_INVALID"),
            (Tool(name="not ok", input_schema_json='{"type": "object"}'), "TOOL_NAME_INVALID"),
        ):
            bad = grpc.aio.server()
            bad.add_generic_rpc_handlers((Bad(tool),))
            port = bad.add_insecure_port("127.0.0.1:0")
            await bad.start()
            assert (await refused(served.client.servers.register(registration(port)))).reason == expected
            await bad.stop(0)
        assert [found async for found in served.client.servers.list()] == []
        assert [found async for found in served.client.tools.list()] == []


async def test_a_registration_succeeds_without_a_connection_and_the_tools_come_later() -> None:  # C026
    async with tool_server() as port:
        pass
    async with serve(operator=OPEN) as served:
        server = await served.client.servers.register(registration(port))
        assert server.state == ServerState.SERVER_STATE_CONNECTING
        assert server.error.message
        assert [found async for found in served.client.tools.list()] == []
        async with tool_server(port):
            ready = await until_state(served, server.id, READY)
            assert list(ready.tool_names) == ["double"]
            assert (await served.client.tools.call("double", '{"number": 2}')).parts[0].json.json == "4"


async def test_a_server_that_is_lost_keeps_its_tools_and_is_found_again_with_new_ones() -> None:
    async with serve(operator=OPEN) as served:
        async with tool_server() as port:
            server = await served.client.servers.register(registration(port))
        lost = await until_state(served, server.id, ServerState.SERVER_STATE_CONNECTING)
        assert list(lost.tool_names) == ["double"]
        stream = served.client.stubs.tools.CallTool(CallToolRequest(tool_name="double", arguments_json='{"number": 2}'))
        error = await failure(stream.read())
        assert reason(error) == "TOOL_UNAVAILABLE"
        assert ("behest-not-executed", "1") in list(error.trailing_metadata() or ())
        async with tool_server(port, name="twice"):
            ready = await until_state(served, server.id, READY)
            assert list(ready.tool_names) == ["twice"]


async def test_registrations_survive_a_restart_and_runs_wait_for_their_server(tmp_path: Path) -> None:  # C024
    async with tool_server() as port:
        async with serve("sqlite", tmp_path) as served:
            server = await served.client.servers.register(registration(port, tool_policies={"*": PURE}))
    async with serve("sqlite", tmp_path) as served:
        known = await served.client.servers.get(server.id)
        assert known.state == ServerState.SERVER_STATE_CONNECTING
        assert list(known.tool_names) == ["double"]
        assert known.create_time == server.create_time
        run = await served.client.run('/tool double {"number": 3}')
        async with tool_server(port):
            async with asyncio.timeout(30):
                assert "double: 6" in (await run.result()).text
        await served.client.servers.unregister(server.id)
        await served.client.servers.unregister(server.id)
        assert (await refused(served.client.servers.get(server.id))).reason == "TOOL_SERVER_NOT_FOUND"
        assert [tool async for tool in served.client.tools.list()] == []
    async with serve("sqlite", tmp_path) as served:
        assert [found async for found in served.client.servers.list()] == []


async def test_servers_of_the_configuration_are_there_at_the_start_and_cannot_be_changed() -> None:
    async with tool_server() as port:
        async with serve(servers=[registration(port, "conf")]) as served:
            (server,) = [found async for found in served.client.servers.list()]
            assert (server.configured, server.state, list(server.tool_names)) == (True, READY, ["double"])
            error = await refused(served.client.servers.register(registration(port, "conf"), replace=True))
            assert error.reason == "TOOL_SERVER_NAME_TAKEN"
            error = await refused(served.client.servers.unregister(server.id))
            assert (error.reason, error.metadata["serverId"]) == ("TOOL_SERVER_CONFIGURED", server.id)


async def test_a_token_is_sent_and_its_text_is_nowhere_to_be_seen() -> None:
    def secrets(reference: str) -> str:
        return {"env:TOOLS": "canary-token"}[reference]

    async with tool_server(token="canary-token") as port, serve(secrets=secrets) as served:
        without = await served.client.servers.register(registration(port))
        assert without.state == ServerState.SERVER_STATE_DEGRADED
        asked = registration(port, token_ref="env:TOOLS")
        server = await served.client.servers.register(asked, replace=True)
        assert server.state == READY
        assert "canary" not in str(server)
        missing = registration(port, "other", token_ref="env:NONE")
        assert (await served.client.servers.register(missing)).state == ServerState.SERVER_STATE_CONNECTING


async def test_a_process_that_serves_tools_is_registered(tmp_path: Path) -> None:  # C024
    (tmp_path / "notes.txt").write_text("one\ntwo words\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            ready = (await process.stdout.readline()).decode()
        port = int(ready.rpartition(":")[2])
        async with serve() as served:
            await served.client.servers.register(registration(port, tool_policies={"*": PURE}))
            result = await served.client.tools.call("count", '{"what": "words"}')
            assert result.parts[0].json.json == "3"
    finally:
        process.kill()
        await process.wait()


async def test_a_daemon_is_the_tool_server_of_another_one() -> None:  # N05
    ledger = Ledger()
    ledger.opened.set()

    async def pay_inside(amount: int) -> str:
        """Pay."""
        return await ledger.work(f"pay {amount}")

    inner_tools = tools((pay_inside, NON_IDEMPOTENT))
    async with serve(tools=inner_tools, operator=OPEN) as inner, serve(operator=OPEN) as outer:
        port = int(inner.daemon.addresses[0].rpartition(":")[2])
        asked = registration(port, "inner", name_prefix="far_")
        server = await outer.client.servers.register(asked)
        assert list(server.tool_names) == ["far_pay_inside"]
        run = await outer.client.run('/tool far_pay_inside {"amount": 7}')
        async with asyncio.timeout(30):
            output = await run.result()
        assert "done pay 7" in output.text
        messages = (await outer.client.runs.get(run.run_id)).messages
        assert [message.role for message in messages].count(Role.ROLE_TOOL) == 1
        assert text_of(messages[-1])
        # A refusal of the inner daemon's rules is told as one, and proves that nothing was executed.
        error = await refused(outer.client.tools.call("far_pay_inside", '{"amount": "x"}'))
        assert error.reason == "TOOL_ARGUMENTS_INVALID"
    assert ledger.calls == ["pay 7"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "server.name"),
        ({"name": "a b"}, "server.name"),
        ({"connection": 0}, "server.connection"),
        ({"address": ""}, "server.address"),
        ({"offers": []}, "server.offers"),
        ({"offers": [99]}, "server.offers[0]"),
        ({"labels": {"": "x"}}, "server.labels"),
        ({"token_ref": "the secret itself"}, "server.token_ref"),
        ({"tls": ServerTls(certificate_ref="env:A")}, "server.tls.key_ref"),
        ({"tls": ServerTls(ca_ref="env:NOT_THERE_AT_ALL")}, "server.tls.ca_ref"),
        ({"dedupe_retention": duration(-1)}, "server.dedupe_retention"),
        ({"name_prefix": "a b"}, "server.name_prefix"),
        ({"tool_policies": {"": PURE}}, "server.tool_policies[]"),
    ],
)
async def test_a_registration_that_breaks_a_rule_is_refused_by_its_field(
    served: Served, changes: dict[str, Any], field: str
) -> None:
    request = RegisterServerRequest(server=registration(1, **changes))
    error = await failure(served.client.stubs.registry.RegisterServer(request))
    assert metadata(error)["field"] == field
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the secret itself" not in str(error)


@pytest.mark.parametrize("address", ["unix:/tmp/x", "10.0.0.1:80", "169.254.169.254:80", "2130706433:80", "host"])
async def test_an_address_that_may_not_be_dialled_is_refused(served: Served, address: str) -> None:
    error = await refused(served.client.servers.register(registration(1, address=address)))
    assert error.reason == "TOOL_ENDPOINT_REFUSED"


async def test_a_server_that_is_not_there_yet_may_offer_models(served: Served) -> None:
    offers = [ServerOffer.SERVER_OFFER_CHAT, ServerOffer.SERVER_OFFER_EMBEDDINGS]
    made = await served.client.servers.register(registration(1, offers=offers))
    assert (made.state, list(made.model_ids)) == (ServerState.SERVER_STATE_CONNECTING, [])
    assert list(made.offers) == offers


async def test_servers_come_in_pages_and_pass_filters(served: Served) -> None:
    for name in ("c", "a", "b"):
        await served.client.servers.register(registration(1, name))
    listed = [server.name async for server in served.client.servers.list(ListServersRequest(page_size=2))]
    assert listed == ["a", "b", "c"]
    assert [server.name async for server in served.client.servers.list(ListServersRequest(name="b"))] == ["b"]
    chat = ListServersRequest(offers=[ServerOffer.SERVER_OFFER_CHAT])
    assert [server async for server in served.client.servers.list(chat)] == []
    stub = served.client.stubs.registry
    for call, field in (
        (stub.ListServers(ListServersRequest(offers=[99])), "offers[0]"),  # type: ignore[list-item]
        (stub.ListServers(ListServersRequest(name="a b")), "name"),
        (stub.GetServer(GetServerRequest()), "server_id"),
        (stub.UnregisterServer(UnregisterServerRequest()), "server_id"),
        (stub.RegisterServer(RegisterServerRequest()), "server"),
    ):
        assert metadata(await failure(call))["field"] == field


@asynccontextmanager
async def served_to(served: Served, caller: Caller) -> AsyncIterator[tuple[RegistryServiceStub, ToolServiceStub]]:
    """Serve the registry and the tools of a daemon to another caller."""
    daemon = served.daemon
    parts = (
        Servers(daemon.house, daemon.rooms.registry, Settings()),
        Tools(daemon.house, daemon.rooms.calls, Settings()),
    )
    handlers = {name: handler for part in parts for name, handler in part.handlers().items()}
    async with serving(handlers, authenticate=lambda context: caller) as edge, connect(edge) as channel:
        yield RegistryServiceStub(channel), ToolServiceStub(channel)


async def test_servers_and_tools_of_another_namespace_are_not_there() -> None:  # C140
    scopes = frozenset({"tools:register", "runs:create"})
    async with tool_server() as port, serve(operator=OPEN) as served:
        server = await served.client.servers.register(registration(port))
        async with served_to(served, Caller("eve", "other", scopes)) as (registry, tools_):
            assert list((await registry.ListServers(ListServersRequest())).servers) == []
            error = await failure(registry.GetServer(GetServerRequest(server_id=server.id)))
            assert reason(error) == "TOOL_SERVER_NOT_FOUND"
            await registry.UnregisterServer(UnregisterServerRequest(server_id=server.id))
            assert list((await tools_.ListTools(ListToolsRequest())).tools) == []
            error = await failure(tools_.CallTool(CallToolRequest(tool_name="double")).read())
            assert reason(error) == "TOOL_NOT_FOUND"
            mine = await registry.RegisterServer(RegisterServerRequest(server=registration(port, "files")))
            assert mine.server.id != server.id
        assert await served.client.servers.get(server.id)


async def test_a_name_belongs_to_the_principal_that_registered_it() -> None:  # S7
    scopes = frozenset({"tools:register"})
    async with tool_server() as port, serve() as served:
        server = await served.client.servers.register(registration(port))
        async with served_to(served, Caller("eve", "default", scopes)) as (registry, _):
            request = RegisterServerRequest(server=registration(port), replace=True)
            assert reason(await failure(registry.RegisterServer(request))) == "TOOL_SERVER_NAME_TAKEN"
            error = await failure(registry.UnregisterServer(UnregisterServerRequest(server_id=server.id)))
            assert reason(error) == "AUTH_SCOPE_MISSING"
            # Only an admin may make the daemon read a secret and send it somewhere.
            asked = registration(port, "mine", token_ref="file:/etc/passwd")
            error = await failure(registry.RegisterServer(RegisterServerRequest(server=asked)))
            assert (reason(error), metadata(error)["scope"]) == ("AUTH_SCOPE_MISSING", "admin")
            made = await registry.RegisterServer(RegisterServerRequest(server=registration(port, "mine")))
            assert made.server.principal == "eve"
