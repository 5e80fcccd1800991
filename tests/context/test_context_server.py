"""A server of context sources made with the SDK: what it answers, and who may ask."""

from __future__ import annotations

import grpc
import pytest

from behest.context_server import ContextServer
from behest.v1.context_service_pb2 import BuildContextRequest, ListContextSourcesRequest, ProvideContextRequest
from behest.v1.context_service_pb2_grpc import ContextServiceStub
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from tests.daemons import rejection


async def test_functions_are_sources() -> None:  # C102
    server = ContextServer()
    system = Message(role=Role.ROLE_SYSTEM, parts=[Part(text=TextPart(text="be kind"))])

    @server.source
    async def plain(request: ProvideContextRequest) -> str:
        """What it is."""
        return f"step {request.step}"

    @server.source(name="several", description="More than one")
    async def more(request: ProvideContextRequest) -> list[str | Message]:
        return ["one", "", system]

    @server.source
    async def silent(request: ProvideContextRequest) -> None:
        return None

    assert [(source.name, source.description) for source in server.sources] == [
        ("plain", "What it is."),
        ("several", "More than one"),
        ("silent", ""),
    ]
    async with server:
        port = await server.serve("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ContextServiceStub(channel)
            told = await stub.ProvideContext(ProvideContextRequest(source="plain", step=3))
            assert told.messages[0].parts[0].text.text == "step 3"
            told = await stub.ProvideContext(ProvideContextRequest(source="several"))
            assert [message.role for message in told.messages] == [Role.ROLE_USER, Role.ROLE_SYSTEM]
            assert not (await stub.ProvideContext(ProvideContextRequest(source="silent"))).messages
            listed = await stub.ListContextSources(ListContextSourcesRequest())
            assert [source.name for source in listed.sources] == ["plain", "several", "silent"]


async def test_failures_have_a_reason() -> None:
    server = ContextServer()

    @server.source
    async def broken(request: ProvideContextRequest) -> str:
        raise RuntimeError("secret text")

    async with server:
        port = await server.serve("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ContextServiceStub(channel)
            assert (await rejection(stub.ProvideContext(ProvideContextRequest(source="broken")))).reason == (
                "CONTEXT_SOURCE_FAILED"
            )
            missing = await rejection(stub.ProvideContext(ProvideContextRequest(source="nothing")))
            assert missing.reason == "CONTEXT_SOURCE_NOT_FOUND"
            unknown = await rejection(stub.BuildContext(BuildContextRequest()))
            assert unknown.code == grpc.StatusCode.UNIMPLEMENTED


async def test_a_token_is_asked_for() -> None:
    server = ContextServer(token="right")

    @server.source
    async def plain(request: ProvideContextRequest) -> str:
        return "yes"

    async with server:
        port = await server.serve("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ContextServiceStub(channel)
            asked = ProvideContextRequest(source="plain")
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                assert (await rejection(stub.ProvideContext(asked, metadata=metadata))).reason == "AUTH_REQUIRED"
            told = await stub.ProvideContext(asked, metadata=(("authorization", "Bearer right"),))
            assert told.messages[0].parts[0].text.text == "yes"


def test_a_name_is_registered_once() -> None:
    server = ContextServer()

    async def plain(request: ProvideContextRequest) -> str:
        return "yes"

    server.source(plain)
    with pytest.raises(ValueError, match="registered already"):
        server.source(plain)
