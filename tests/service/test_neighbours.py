"""Health and reflection: the protocols beside ours, asked as their own clients ask."""

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2 as alpha

from behestd.service.call import Call
from behestd.service.reflection import METHODS, STABLE
from behestd.service.scopes import Load
from tests.service import edges
from tests.service.edges import connect, drain, failure, reason, serving, until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {
    "behest.v1.DaemonService",
    "behest.v1.RunService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


async def answer(request: Any, call: Call) -> bytes:
    """Do as asked."""
    return b""


HANDLERS = {edges.GET: answer, edges.INFO: answer}


@pytest.mark.parametrize("service", ["", "behest.v1.RunService", "behest.v1.DaemonService"])
async def test_health_of_the_whole_and_of_each_service_follows_what_the_daemon_says(service: str) -> None:
    # C134
    async with serving(HANDLERS) as edge, connect(edge) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await health.Check(request)).status == NOT_SERVING
        edge.health.set_serving()
        assert (await health.Check(request)).status == SERVING
        edge.health.set_not_serving()
        assert (await health.Check(request)).status == NOT_SERVING


async def test_health_of_an_unknown_service_is_not_found_without_a_reason_of_ours() -> None:
    async with serving(HANDLERS) as edge, connect(edge) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        error = await failure(health.Check(health_pb2.HealthCheckRequest(service="behest.v1.Nothing")))
        assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "")


async def test_a_watch_of_health_tells_each_change_and_unknown_services_too() -> None:
    async with serving(HANDLERS) as edge, connect(edge) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        known = health.Watch(health_pb2.HealthCheckRequest(service="behest.v1.RunService"))
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="nothing"))
        assert (await known.read()).status == NOT_SERVING
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        edge.health.set_serving()
        assert (await known.read()).status == SERVING
        edge.health.set_not_serving()
        assert (await known.read()).status == NOT_SERVING
        for watch in (known, unknown):
            watch.cancel()
        await until(lambda: edge.admission.statistics().in_flight[Load.WATCH] == 0)


@pytest.mark.parametrize("method", METHODS)
async def test_clients_of_both_versions_of_reflection_list_the_services_and_get_their_files(method: str) -> None:
    # The messages of v1 are those of v1alpha under another name, byte for byte.
    def ask(channel: grpc.aio.Channel, **question: Any) -> Any:
        call = channel.stream_stream(
            method,
            request_serializer=alpha.ServerReflectionRequest.SerializeToString,
            response_deserializer=alpha.ServerReflectionResponse.FromString,
        )
        return drain(call(iter([alpha.ServerReflectionRequest(**question)])))

    async with serving(HANDLERS) as edge, connect(edge) as channel:
        (listed,) = await ask(channel, list_services="")
        assert {service.name for service in listed.list_services_response.service} == SERVICES
        for name in SERVICES:
            (described,) = await ask(channel, file_containing_symbol=name)
            files = [
                FileDescriptorProto.FromString(body)
                for body in described.file_descriptor_response.file_descriptor_proto
            ]
            found = {f"{file.package}.{service.name}" for file in files for service in file.service}
            assert name in found
        (missing,) = await ask(channel, file_containing_symbol="behest.v1.Nothing")
        assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        (v1,) = await ask(channel, file_containing_symbol=f"{STABLE}.ServerReflectionRequest")
        assert b"v1alpha" not in b"".join(v1.file_descriptor_response.file_descriptor_proto)


async def test_reflection_can_be_left_out() -> None:
    async with serving(HANDLERS, has_reflection=False) as edge, connect(edge) as channel:
        for method in METHODS:
            error = await failure(drain(channel.stream_stream(method)(iter([b""]))))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
