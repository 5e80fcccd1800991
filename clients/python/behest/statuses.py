"""The status that the daemon gave a call, also where grpc.aio has put another one in its place.

Above: what sends requests in a stream. Below: grpc.aio: a write that fails, as each does when the call was refused or
ended meanwhile, makes INTERNAL of a status that is there already (https://github.com/grpc/grpc/issues/36066).
Guarantees: only that word of grpc's own is looked behind; an INTERNAL of the daemon stays what it is.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

Request = TypeVar("Request")
Response = TypeVar("Response")
Value = TypeVar("Value")

CUT_SHORT = "Internal error from Core"
"""What grpc.aio tells of a call in which a write failed."""
STATUS_SECONDS = 1.0
"""How long a status may take to come after a write has failed."""
LOOK_SECONDS = 0.01


def is_cut_short(code: grpc.StatusCode, details: str | None) -> bool:
    """Whether a status is grpc's word for a write that failed, and not the daemon's."""
    return code is grpc.StatusCode.INTERNAL and details == CUT_SHORT


class FirstStatus:
    """Keeps the first status of a call, as its done callbacks see it. To be made before the first write."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._given: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def given(self) -> grpc.aio.AioRpcError | None:
        """Return the status that the daemon gave, which may be OK. None: it gave none within a second."""
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                # One that comes after the failed write takes its place, and callbacks are not called again.
                while self._given is None and not self._call.cancelled():
                    await asyncio.sleep(LOOK_SECONDS)
                    self._note(self._call)
        except TimeoutError:
            return None
        return self._given

    async def instead_of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Return the error that the daemon gave where there is grpc's own word, else the same."""
        if not is_cut_short(error.code(), error.details()):
            return error
        given = await self.given()
        return error if given is None or given.code() is grpc.StatusCode.OK else given

    def _note(self, call: Any) -> None:
        code, details = now(call.code()), now(call.details())
        if not call.cancelled() and not is_cut_short(code, details):
            trailers = now(call.trailing_metadata()) or grpc.aio.Metadata()
            self._given = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)


async def answer_of(
    call: grpc.aio.StreamUnaryCall[Request, Response], requests: AsyncGenerator[Request, None]
) -> Response:
    """Send all requests of a call, and return its answer. Raises AioRpcError, with what the daemon says."""
    status = FirstStatus(call)
    try:
        try:
            async with aclosing(requests):
                async for request in requests:
                    await call.write(request)
            await call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            # A call that was refused takes no more requests; awaiting it says why.
            pass
        return await call
    except grpc.aio.AioRpcError as exc:
        raise await status.instead_of(exc) from None
    finally:
        call.cancel()


def now(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Return what a coroutine returns that has nothing to wait for, such as the status of a call that is over."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: Value = end.value
        return value
    coroutine.close()
    raise RuntimeError("the coroutine waits")
