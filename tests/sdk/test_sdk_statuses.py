"""The status of a call whose requests stream: the daemon's, whatever grpc.aio makes of a write that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from behest.statuses import CUT_SHORT, FirstStatus, answer_of, is_cut_short
from behestd.errors import Forbidden
from behestd.service.call import Call
from tests.service import edges
from tests.service.edges import Gate, connect, reason, serving

SECONDS = 10.0


async def refuse(requests: Any, call: Call) -> None:
    """Refuse a call before any request was read."""
    raise Forbidden("AUTH_SCOPE_MISSING", "not for you")


async def break_off(requests: Any, call: Call) -> None:
    """Fail as a daemon with a bug does."""
    raise RuntimeError("a bug")


@asynccontextmanager
async def stream_of(handler: edges.Handler) -> AsyncIterator[grpc.aio.StreamStreamCall[bytes, bytes]]:
    async with serving({edges.ATTACH: handler}) as edge, connect(edge) as channel:
        yield channel.stream_stream(edges.ATTACH)()


async def over(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    """Wait for the status that the call has by itself, as an error."""
    async with asyncio.timeout(SECONDS):
        code, details, trailers = await call.code(), await call.details(), await call.trailing_metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers or grpc.aio.Metadata(), details)


def fail_to_write(call: Any) -> None:
    """Do what grpc.aio does when a write fails, whatever the call has ended with."""
    call._cython_call.set_internal_error("a write failed")


async def test_a_write_that_fails_after_the_refusal_does_not_hide_it() -> None:
    async with stream_of(refuse) as call:
        status = FirstStatus(call)
        await over(call)
        fail_to_write(call)
        error = await over(call)
        assert is_cut_short(error.code(), error.details())
        told = await status.instead_of(error)
    assert (told.code(), reason(told)) == (grpc.StatusCode.PERMISSION_DENIED, "AUTH_SCOPE_MISSING")


async def test_a_refusal_that_comes_after_the_write_that_failed_is_found() -> None:
    gate = Gate()

    async def late(requests: Any, call: Call) -> None:
        await gate.pass_through()
        await refuse(requests, call)

    async with stream_of(late) as call:
        status = FirstStatus(call)
        await gate.reached.wait()
        fail_to_write(call)
        error = await over(call)
        gate.opened.set()
        told = await status.instead_of(error)
    assert (told.code(), reason(told)) == (grpc.StatusCode.PERMISSION_DENIED, "AUTH_SCOPE_MISSING")


async def test_a_fault_of_the_daemon_stays_one() -> None:
    async with stream_of(break_off) as call:
        status = FirstStatus(call)
        error = await over(call)
        assert await status.instead_of(error) is error
        assert reason(error) == "RUNTIME_INTERNAL"
        # Also where grpc's own word came over it.
        fail_to_write(call)
        told = await status.instead_of(await over(call))
    assert (told.code(), reason(told)) == (grpc.StatusCode.INTERNAL, "RUNTIME_INTERNAL")


async def test_a_call_that_nobody_answers_keeps_the_word_of_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("behest.statuses.STATUS_SECONDS", 0.05)
    gate = Gate()

    async def never(requests: Any, call: Call) -> None:
        await gate.pass_through()

    async with stream_of(never) as call:
        status = FirstStatus(call)
        await gate.reached.wait()
        fail_to_write(call)
        error = await over(call)
        told = await status.instead_of(error)
        gate.opened.set()
    assert told is error
    assert told.details() == CUT_SHORT


async def test_what_is_refused_while_it_is_sent_says_why_each_time() -> None:
    async def frames() -> Any:
        for _ in range(20):
            yield b"x" * 1_000

    async with serving({edges.WRITE: refuse}) as edge, connect(edge) as channel:
        for _ in range(50):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answer_of(channel.stream_unary(edges.WRITE)(), frames())
            assert reason(caught.value) == "AUTH_SCOPE_MISSING"
