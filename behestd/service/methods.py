"""The one way in: every method of every service is wrapped here, with the promises that all of them give.

Above it is `server`, which registers; below it `scopes`, `admission`, `call` and `status`. Each call is
authenticated, held against its scope, admitted by class, decoded, bounded in time, and answered: a
BehestError by the table of `status`, a request that cannot be decoded as REQUEST_MALFORMED, any other
exception as RUNTIME_INTERNAL without a word of its text. A cancellation that nobody asked for does not leave
the client hanging, and one that a handler swallowed is raised again. gRPC sees bytes only: what it does
itself with a message that cannot be read or written is to send the exception's text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from behestd.errors import BehestError, TimedOut, Unsupported
from behestd.service.call import Call, Requests, decode
from behestd.service.scopes import RULES, authorise
from behestd.service.status import abort, internal, is_fault

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

    from behestd.service.admission import Admission
    from behestd.service.scopes import Caller
    from behestd.service.settings import Settings

    Context = grpc.aio.ServicerContext[Any, Any]
    Authenticate = Callable[[Context], Caller]
    """Says who calls, or raises Unauthenticated: the one place that looks at credentials."""
    RpcHandler = grpc.RpcMethodHandler[Any, Any]

logger = logging.getLogger(__name__)

Handler = Callable[[Any, Call], Awaitable[Message | bytes | None]]
"""Answers a method: gets the request, or an async iterator of them, and the call. Returns the response, encoded or not,
or None when the method answers by a stream, which it writes itself."""


@dataclass(frozen=True, slots=True)
class House:
    """What all methods share."""

    settings: Settings
    admission: Admission
    authenticate: Authenticate


class Method:
    """One method with its handler, as gRPC calls it."""

    __slots__ = (
        "_default_seconds",
        "_handler",
        "_house",
        "_is_request_stream",
        "_loads",
        "_name",
        "_parse",
        "_scope",
    )

    def __init__(self, name: str, descriptor: MethodDescriptor, handler: Handler, house: House) -> None:
        rule = RULES[name]
        is_unary = not descriptor.client_streaming and not descriptor.server_streaming
        self._name = name
        self._handler = handler
        self._house = house
        self._scope = rule.scope
        self._loads = rule.loads
        self._is_request_stream = descriptor.client_streaming
        self._default_seconds = house.settings.unary_seconds if is_unary else None
        self._parse: Callable[[bytes], Message] = message_factory.GetMessageClass(descriptor.input_type).FromString

    async def answer(self, source: Any, context: Context) -> bytes | None:
        """Answer one call. `source` is the encoded request, or gRPC's iterator, which is left alone."""
        call = Call(context, self._house.settings.write_seconds)
        try:
            return await self._admitted(source, call, context)
        except BehestError as error:
            failure = error
            if is_fault(error):
                logger.exception("call failed", extra={"method": self._name, "reason": error.reason})
        except asyncio.CancelledError:
            if call.is_over:
                raise
            failure = internal()
            logger.exception("stray cancellation", extra={"method": self._name})
        except Exception:
            failure = internal()
            logger.exception("call failed", extra={"method": self._name})
        finally:
            call.close()
        if call.is_over:
            raise asyncio.CancelledError
        await abort(context, failure, self._house.settings.abort_seconds)
        return None

    async def _admitted(self, source: Any, call: Call, context: Context) -> bytes | None:
        house = self._house
        if self._scope is not None:
            call.caller = house.authenticate(context)
            authorise(call.caller, self._scope)
        house.admission.enter(self._loads, call.caller)
        try:
            request = Requests(self._parse, context, call) if self._is_request_stream else decode(self._parse, source)
            if self._default_seconds is None or context.time_remaining() is not None:
                reply = await self._handler(request, call)
            else:
                reply = await self._bounded(request, call, self._default_seconds)
        finally:
            house.admission.leave(self._loads)
        if call.is_over:
            # A handler that swallows its cancellation would leak the call (grpc#43360).
            raise asyncio.CancelledError
        return reply if reply is None or isinstance(reply, bytes) else reply.SerializeToString()

    async def _bounded(self, request: Any, call: Call, limit_seconds: float) -> Message | bytes | None:
        bound = asyncio.timeout(limit_seconds)
        try:
            async with bound:
                return await self._handler(request, call)
        except TimeoutError:
            if not bound.expired():
                raise
            raise TimedOut(
                "TRANSPORT_DEADLINE",
                f"the call took longer than {limit_seconds:g} s, the deadline of calls that bring none",
                limitSeconds=f"{limit_seconds:g}",
            ) from None


class Router(grpc.GenericRpcHandler):
    """Finds the method of a call by its full name."""

    def __init__(self, handlers: Mapping[str, RpcHandler]) -> None:
        self._handlers = dict(handlers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> RpcHandler | None:
        """Return the method's handler, None when there is none: gRPC then answers UNIMPLEMENTED by itself."""
        return self._handlers.get(handler_call_details.method)


def describe(name: str) -> MethodDescriptor:
    """Find the descriptor of `/package.Service/Method`. Raises KeyError when no imported contract has it."""
    return descriptor_pool.Default().FindMethodByName(name.removeprefix("/").replace("/", "."))


def wrap(name: str, descriptor: MethodDescriptor, handler: Handler, house: House) -> RpcHandler:
    """Wrap a handler as gRPC wants it. Raises KeyError when the method has no row in `scopes`."""
    answer: Any = Method(name, descriptor, handler, house).answer
    match descriptor.client_streaming, descriptor.server_streaming:
        case False, False:
            return grpc.unary_unary_rpc_method_handler(answer)
        case False, True:
            return grpc.unary_stream_rpc_method_handler(answer)
        case True, False:
            return grpc.stream_unary_rpc_method_handler(answer)
        case _:
            return grpc.stream_stream_rpc_method_handler(answer)


def wrap_all(handlers: Mapping[str, Handler], house: House) -> dict[str, RpcHandler]:
    """Wrap handlers by full method name, `/package.Service/Method`.

    A service with at least one handler is served whole: its other methods answer REQUEST_UNSUPPORTED. Raises KeyError
    for a handler whose method has no row in `scopes`.
    """
    wrapped: dict[str, RpcHandler] = {}
    services = {found.full_name: found for found in (describe(name).containing_service for name in handlers)}
    for service in services.values():
        for descriptor in service.methods:
            name = f"/{service.full_name}/{descriptor.name}"
            if name in handlers or name in RULES:
                wrapped[name] = wrap(name, descriptor, handlers.get(name) or _unsupported(name), house)
    return wrapped


def _unsupported(name: str) -> Handler:
    async def refuse(request: Any, call: Call) -> None:
        raise Unsupported("REQUEST_UNSUPPORTED", f"{name} is not offered here", feature=name)

    return refuse
