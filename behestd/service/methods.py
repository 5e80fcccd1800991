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
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from behestd.errors import BehestError, Cancelled, TimedOut, Unsupported
from behestd.service.call import Call, Exchange, Requests, decode
from behestd.service.scopes import RULES, Audit, Load, authorise
from behestd.service.status import abort, internal, is_fault

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

    from behestd.service.admission import Admission
    from behestd.service.audit import Trail
    from behestd.service.open_calls import OpenCalls
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


class Observer(Protocol):
    """Hears of each call once, when it has been answered and before its status leaves."""

    def ended(self, method: str, call: Call, failure: BehestError | None, seconds: float) -> None:
        """Take note of a call: `/package.Service/Method`, how it failed (None: it did not), how long it took.

        A call whose client left or whose deadline passed has the reason TRANSPORT_CANCELLED. Called in the order of the
        ends, on the loop: it must neither wait nor raise.
        """
        ...


@dataclass(frozen=True, slots=True)
class House:
    """What all methods share."""

    settings: Settings
    admission: Admission
    authenticate: Authenticate
    observers: Sequence[Observer] = ()
    open_calls: OpenCalls | None = None
    """Keeps streams in sight whose callers have credentials. None: no caller has."""
    trail: Trail | None = None
    """Records calls for the audit. None: nobody does."""


class Method:
    """One method with its handler, as gRPC calls it."""

    __slots__ = (
        "_audit",
        "_default_seconds",
        "_handler",
        "_house",
        "_is_request_stream",
        "_is_response_stream",
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
        self._audit = rule.audit if house.trail is not None else Audit.NONE
        self._loads = rule.loads if is_unary else (*rule.loads, Load.STREAM)
        self._is_request_stream = descriptor.client_streaming
        self._is_response_stream = descriptor.server_streaming
        self._default_seconds = house.settings.unary_seconds if is_unary else None
        self._parse: Callable[[bytes], Message] = message_factory.GetMessageClass(descriptor.input_type).FromString

    async def answer(self, source: Any, context: Context) -> bytes | None:
        """Answer one call. `source` is the encoded request, or gRPC's iterator, which is left alone."""
        call = Call(context, self._house.settings.write_seconds)
        observers = self._house.observers
        start_seconds = time.monotonic() if observers else 0.0
        try:
            reply = await self._admitted(source, call, context)
            if observers:
                self._tell(call, None, start_seconds)
            return reply
        except BehestError as error:
            failure = error
            if is_fault(error):
                logger.exception("call failed", extra={"method": self._name, "reason": error.reason})
        except asyncio.CancelledError:
            failure = internal()
            if not call.is_over:
                logger.exception("stray cancellation", extra={"method": self._name})
        except Exception:
            failure = internal()
            logger.exception("call failed", extra={"method": self._name})
        finally:
            call.close()
        failure = call.ending() or failure
        self._record_failure(call, failure)
        if observers:
            self._tell(call, _gone() if call.is_over else failure, start_seconds)
        if call.is_over:
            raise asyncio.CancelledError
        await abort(context, failure, self._house.settings.abort_seconds)
        return None

    async def _record(self, call: Call, exchange: Exchange, reply: Message | bytes | None) -> None:
        """Record a call that went well, before it is answered. Raises StorageFull and StorageFailed."""
        exchange.reply = reply if isinstance(reply, Message) else None
        exchange.is_recorded = True
        if self._house.trail is not None:
            await self._house.trail.answered(self._name, call, is_durable=self._audit is Audit.DURABLE)

    def _record_failure(self, call: Call, failure: BehestError) -> None:
        trail, exchange = self._house.trail, call.exchange
        if trail is not None and exchange is not None and not exchange.is_recorded:
            trail.failed(self._name, call, _gone() if call.is_over else failure)

    def _tell(self, call: Call, failure: BehestError | None, start_seconds: float) -> None:
        seconds = time.monotonic() - start_seconds
        for observer in self._house.observers:
            observer.ended(self._name, call, failure, seconds)

    async def _admitted(self, source: Any, call: Call, context: Context) -> bytes | None:
        house = self._house
        call.exchange = Exchange() if self._audit is not Audit.NONE else None
        if self._scope is not None:
            call.caller = house.authenticate(context)
            authorise(call.caller, self._scope)
        if house.trail is not None:
            self._begin(call, house.trail)
        house.admission.enter(self._loads, call.caller)
        opened = house.open_calls
        if opened is not None and self._scope is not None and self._default_seconds is None:
            opened.enter(call, self._scope)
        try:
            request = Requests(self._parse, context, call) if self._is_request_stream else decode(self._parse, source)
            if call.exchange is not None and isinstance(request, Message):
                call.exchange.request = request
            if self._default_seconds is None or context.time_remaining() is not None:
                reply = await self._handler(request, call)
            else:
                reply = await self._bounded(request, call, self._default_seconds)
        finally:
            house.admission.leave(self._loads, call.caller)
            if opened is not None:
                opened.leave(call)
        if call.is_over:
            # A handler that swallows its cancellation would leak the call (grpc#43360).
            raise asyncio.CancelledError
        if call.exchange is not None:
            await self._record(call, call.exchange, reply)
        return reply if reply is None or isinstance(reply, bytes) else reply.SerializeToString()

    def _begin(self, call: Call, trail: Trail) -> None:
        """Refuse what could not be recorded, and record what lasts. Raises StorageFull and StorageFailed."""
        if self._audit is Audit.DURABLE:
            trail.check()
        if call.exchange is not None and self._is_request_stream and self._is_response_stream:
            trail.begun(self._name, call)

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


def _gone() -> Cancelled:
    return Cancelled("TRANSPORT_CANCELLED", "the client left, or its deadline passed")


def _unsupported(name: str) -> Handler:
    async def refuse(request: Any, call: Call) -> None:
        raise Unsupported("REQUEST_UNSUPPORTED", f"{name} is not offered here", feature=name)

    return refuse
