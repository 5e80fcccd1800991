"""Errors as the client's users see them: decoded from real trailers, with reasons for what gRPC answers by itself."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from behest.calls import Patience
from behest.client import Client
from behest.errors import BehestError, UnreachableError, read_status
from behest.v1 import error_reason_pb2, run_service_pb2
from tests.sdk.daemon import RUN_ID, FakeDaemon, served, status, story, with_retry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

QUICK = Patience(call_seconds=0.2, repeat_seconds=0.3, pause_seconds=0.02, drain_seconds=0.3)


@asynccontextmanager
async def client_of(daemon: FakeDaemon, patience: Patience = QUICK) -> AsyncGenerator[Client, None]:
    """Serve a daemon and connect to it."""
    async with asyncio.timeout(30), served(daemon) as port, Client(f"127.0.0.1:{port}", patience=patience) as client:
        yield client


# C142
async def test_an_error_of_the_daemon_keeps_its_code_reason_metadata_delay_and_violations() -> None:
    refusal = with_retry(status(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID", field="spec.input"), seconds=2)
    bad = AnyMessage()
    violation = error_details_pb2.BadRequest.FieldViolation(field="spec.input", description="is empty")
    bad.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    refusal.details.append(bad)
    async with client_of(FakeDaemon([], refusal=refusal)) as client:
        with pytest.raises(BehestError) as caught:
            await client.run("hello")
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
    assert error.metadata == {"field": "spec.input"}
    assert error.retry_seconds == 2.0
    assert error.violations == (("spec.input", "is empty"),)


async def test_details_of_others_and_of_unknown_types_are_passed_over() -> None:
    foreign = AnyMessage()
    foreign.Pack(error_details_pb2.ErrorInfo(reason="SOMETHING", domain="example.org"))
    unknown = AnyMessage(type_url="type.googleapis.com/example.Unknown", value=b"\xff")
    code, reason, message, fields = read_status(
        status_pb2.Status(code=5, message="not found", details=[foreign, unknown])
    )
    assert (code, reason, message, fields) == (grpc.StatusCode.NOT_FOUND, "", "not found", {})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "TRANSPORT_TOO_LARGE"),
        (grpc.StatusCode.UNIMPLEMENTED, "TRANSPORT_UNIMPLEMENTED"),
        (grpc.StatusCode.CANCELLED, "TRANSPORT_CANCELLED"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "TRANSPORT_DEADLINE"),
        (grpc.StatusCode.UNAVAILABLE, "TRANSPORT_UNAVAILABLE"),
        (grpc.StatusCode.UNKNOWN, "TRANSPORT_STREAM_BROKEN"),
        (grpc.StatusCode.NOT_FOUND, ""),
    ],
    ids=lambda value: getattr(value, "name", value),
)
async def test_a_code_without_our_details_has_a_transport_reason(code: grpc.StatusCode, reason: str) -> None:
    daemon = FakeDaemon([], refusal=status_pb2.Status(code=code.value[0], message="from elsewhere"))
    async with client_of(daemon) as client:
        with pytest.raises(BehestError) as caught:
            await client.runs.get(RUN_ID)
    assert caught.value.reason == reason
    assert not reason or f"ERROR_REASON_{reason}" in error_reason_pb2.ErrorReason.keys()


async def test_a_method_that_the_daemon_does_not_serve_is_named_unimplemented() -> None:
    async with client_of(FakeDaemon([])) as client:
        with pytest.raises(BehestError) as caught:
            await client.daemon.info()
    assert caught.value.reason == "TRANSPORT_UNIMPLEMENTED"


class Failing(FakeDaemon):
    """Creates a run, and answers so only at the third attempt."""

    async def CreateRun(
        self, request: run_service_pb2.CreateRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> run_service_pb2.CreateRunResponse:
        """Answer once it was asked often enough."""
        response = await super().CreateRun(request, context)
        if len(self.calls) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        if len(self.calls) == 2:
            await asyncio.Event().wait()
        return response


# matrix row 53
async def test_a_create_whose_outcome_is_unknown_is_repeated_under_its_request_id() -> None:
    daemon = Failing(story(), reached=1)
    async with client_of(daemon, Patience(call_seconds=0.1, repeat_seconds=5, pause_seconds=0.02)) as client:
        run = await client.run("hello", run_id=RUN_ID)
    assert run.run_id == RUN_ID
    assert run.is_replayed
    assert daemon.calls == ["CreateRun"] * 3
    assert len({request.request_id for request in daemon.requests}) == 1


async def test_an_order_that_was_decided_is_not_repeated() -> None:
    daemon = FakeDaemon([], refusal=status(grpc.StatusCode.INTERNAL, "RUNTIME_INTERNAL"))
    async with client_of(daemon) as client:
        with pytest.raises(BehestError) as caught:
            await client.run("hello")
    assert caught.value.reason == "RUNTIME_INTERNAL"
    assert daemon.calls == ["CreateRun"]


async def test_a_draining_daemon_is_asked_again_until_patience_is_over() -> None:
    daemon = FakeDaemon([], refusal=status(grpc.StatusCode.UNAVAILABLE, "RUNTIME_DRAINING"))
    async with client_of(daemon) as client:
        with pytest.raises(BehestError) as caught:
            await client.runs.get(RUN_ID)
    assert caught.value.reason == "RUNTIME_DRAINING"
    assert not isinstance(caught.value, UnreachableError)
    assert len(daemon.calls) > 1


async def test_pages_are_asked_for_as_they_are_needed() -> None:
    daemon = FakeDaemon([])
    async with client_of(daemon) as client:
        listed = client.runs.list(run_service_pb2.ListRunsRequest(session_id="ses_1"))
        assert (await anext(listed)).id == "run_1"
        assert len(daemon.calls) == 1
        assert [run.id async for run in listed] == ["run_2", "run_3"]
    assert [(request.session_id, request.page_token) for request in daemon.requests] == [("ses_1", ""), ("ses_1", "3")]
