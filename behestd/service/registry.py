"""RegistryService: registrations of remote processes, and the streams of those that attach themselves. Above: the edge.

Below: `runtime.registry` and `runtime.attached_streams`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from behest.v1 import registry_service_pb2 as pb
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behestd.errors import Forbidden, InvalidRequest, TimedOut
from behestd.runtime.attached_streams import AttachedStreams, Wire
from behestd.runtime.house import House
from behestd.runtime.registration import Owner, Registered
from behestd.runtime.registry import Registry
from behestd.service.call import Call, Requests
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.scopes import ADMIN, Caller
from behestd.service.settings import MIB, Settings
from behestd.service.status import run_error
from behestd.service.validate import (
    duration,
    identifier,
    known,
    labels,
    max_bytes,
    not_negative,
    required,
    required_message,
    within,
)

_NAME = "/behest.v1.RegistryService/"
_PAGE_BYTES = 3 * MIB
_MAX_ADDRESS_BYTES = 512
_MAX_REFERENCE_BYTES = 4096
_MAX_KEY_BYTES = 128
HELLO_SECONDS = 10.0
"""How long a server that attaches may take to say hello."""
_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\0]+|credential:[A-Za-z0-9_.@:-]{1,255}")


class Servers:
    """Handlers of RegistryService."""

    def __init__(self, house: House, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._streams = AttachedStreams(house, registry)
        self._max_frame_bytes = min(settings.request_bytes, settings.response_bytes)

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "RegisterServer": self.register_server,
            _NAME + "GetServer": self.get_server,
            _NAME + "ListServers": self.list_servers,
            _NAME + "UnregisterServer": self.unregister_server,
            _NAME + "AttachServer": self.attach_server,
        }

    async def register_server(self, request: pb.RegisterServerRequest, call: Call) -> pb.RegisterServerResponse:
        """Register a server and dial it."""
        required_message(request, "server")
        _check(request.server, call.caller)
        with within("server"):
            made, replayed = await self._registry.register(
                call.namespace, request.server, _owner(call), replace=request.replace
            )
        return pb.RegisterServerResponse(server=_shown(made), replayed=replayed)

    async def get_server(self, request: pb.GetServerRequest, call: Call) -> pb.GetServerResponse:
        """Get a server."""
        identifier("server_id", request.server_id)
        return pb.GetServerResponse(server=_shown(self._registry.find(call.namespace, request.server_id)))

    async def list_servers(self, request: pb.ListServersRequest, call: Call) -> pb.ListServersResponse:
        """List servers by name."""
        page = page_of(request, call.namespace, (str,))
        _check_filters(request)
        after = str(page.after[0]) if page.after else ""
        response = pb.ListServersResponse()
        size_bytes = 0
        for name in self._registry.names(call.namespace):
            server = self._registry.named(call.namespace, name)
            if server is None or name <= after or not _passes(server, request):
                continue
            shown = _shown(server)
            size_bytes += shown.ByteSize()
            if len(response.servers) == page.size or (response.servers and size_bytes > _PAGE_BYTES):
                response.next_page_token = page.token(response.servers[-1].name)
                break
            response.servers.append(shown)
        return response

    async def unregister_server(self, request: pb.UnregisterServerRequest, call: Call) -> pb.UnregisterServerResponse:
        """Remove a registration."""
        identifier("server_id", request.server_id)
        await self._registry.unregister(call.namespace, request.server_id, _owner(call))
        return pb.UnregisterServerResponse()

    async def attach_server(self, requests: Requests, call: Call) -> None:
        """Attach the caller as a server, and serve its stream."""
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(requests, None)
        except TimeoutError:
            text = f"no hello within {HELLO_SECONDS:g} s"
            raise TimedOut("TRANSPORT_DEADLINE", text, limitSeconds=f"{HELLO_SECONDS:g}") from None
        if not isinstance(first, pb.AttachServerRequest) or first.WhichOneof("frame") != "hello":
            raise InvalidRequest("hello", "is required in the first frame")
        call.names(server_name=first.hello.server_name)
        wire = Wire(requests, call.send, _check_hello, self._max_frame_bytes)
        await self._streams.serve(call.namespace, first.hello, _owner(call), wire)


def _owner(call: Call) -> Owner:
    return Owner(call.caller.principal, call.caller.has(ADMIN))


def _shown(server: Registered) -> Server:
    told = server.report()
    if server.error is not None:
        told.error.CopyFrom(run_error(server.error))
    return told


def _passes(server: Registered, request: pb.ListServersRequest) -> bool:
    has_offer = not request.offers or any(offer in request.offers for offer in server.registration.offers)
    return has_offer and request.name in ("", server.name)


def _check_filters(request: pb.ListServersRequest) -> None:
    if request.name:
        identifier("name", request.name)
    for index, offer in enumerate(request.offers):
        known(f"offers[{index}]", offer, ServerOffer.DESCRIPTOR)


def _check(server: Server, caller: Caller) -> None:
    """Check a registration; addresses, policies, the prefix and the tools are checked where they are used."""
    identifier("server.name", server.name)
    known("server.connection", server.connection, ServerConnection.DESCRIPTOR)
    _check_reach(server)
    required("server.offers", server.offers)
    for index, offer in enumerate(server.offers):
        known(f"server.offers[{index}]", offer, ServerOffer.DESCRIPTOR)
    labels("server.labels", server.labels)
    if server.HasField("dedupe_retention"):
        duration("server.dedupe_retention", server.dedupe_retention)
    _check_references(server, caller)


def _check_reach(server: Server) -> None:
    """Check how a server is reached: one that attaches itself is not."""
    if server.connection != ServerConnection.SERVER_CONNECTION_ATTACHED:
        required("server.address", server.address)
        max_bytes("server.address", server.address, _MAX_ADDRESS_BYTES)
        return
    if ServerOffer.SERVER_OFFER_CONTEXT in server.offers:
        raise InvalidRequest("server.offers", "hold context, of which only servers that are dialled are asked")
    for name in ("address", "token_ref"):
        if getattr(server, name):
            raise InvalidRequest(f"server.{name}", "is for servers that are dialled")
    if server.HasField("tls"):
        raise InvalidRequest("server.tls", "is for servers that are dialled")


def _check_hello(hello: pb.AttachHello) -> None:
    """Check a hello; its tools and models are checked where they are used."""
    identifier("hello.server_name", hello.server_name)
    if hello.HasField("dedupe_retention"):
        duration("hello.dedupe_retention", hello.dedupe_retention)
    not_negative("hello.max_concurrent_calls", hello.max_concurrent_calls)
    max_bytes("hello.lease_id", hello.lease_id, _MAX_KEY_BYTES)
    for index, known_call in enumerate(hello.held):
        max_bytes(f"hello.held[{index}].idempotency_key", known_call.idempotency_key, _MAX_KEY_BYTES)


def _check_references(server: Server, caller: Caller) -> None:
    """Check references to secrets. Only admins may give one: it makes the daemon read a file and send what it holds."""
    references = {"server.token_ref": server.token_ref}
    for name in ("ca_ref", "certificate_ref", "key_ref"):
        references[f"server.tls.{name}"] = getattr(server.tls, name)
    for path, reference in references.items():
        max_bytes(path, reference, _MAX_REFERENCE_BYTES)
        if reference and not _REFERENCE.fullmatch(reference):
            raise InvalidRequest(path, "must be env:NAME, file:/path or credential:NAME")
        if reference and not caller.has(ADMIN):
            raise Forbidden("AUTH_SCOPE_MISSING", f"{path} needs the scope {ADMIN}", scope=ADMIN)
    if server.tls.certificate_ref and not server.tls.key_ref:
        raise InvalidRequest("server.tls.key_ref", "is required with certificate_ref")
    max_bytes("server.tls.server_name", server.tls.server_name, _MAX_ADDRESS_BYTES)
