"""Server reflection, so that `grpcurl` and `buf curl` can talk to the daemon without the proto files.

Above it is `server`; below it the servicer of grpcio-reflection, which knows v1alpha only. Today's tools ask
for v1 first: the two differ in nothing but the name of their package, so v1 is the same servicer and a
descriptor derived by renaming. Descriptors are looked up in a pool of their own: it holds what is served and
nothing else that the process has loaded, each field with its JSON name, which generated Python leaves out and
clients read and write JSON by.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
    from google.protobuf.descriptor_pool import DescriptorPool

    from behestd.service.call import Call

ALPHA = "grpc.reflection.v1alpha"
STABLE = "grpc.reflection.v1"
METHODS = tuple(f"/{package}.ServerReflection/ServerReflectionInfo" for package in (STABLE, ALPHA))
SERVICES = tuple(f"{package}.ServerReflection" for package in (STABLE, ALPHA))


def method() -> MethodDescriptor:
    """Return the descriptor that both versions are read and written by."""
    return descriptor_pool.Default().FindMethodByName(f"{ALPHA}.ServerReflection.ServerReflectionInfo")


class Reflection:
    """Answers questions about the services that are served, its own two among them."""

    def __init__(self, services: Iterable[str]) -> None:
        named = tuple(services)
        self._servicer = reflection_aio.ReflectionServicer((*named, *SERVICES), pool=pool_of(named))

    async def answer(self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], call: Call) -> None:
        """Answer each question in turn."""
        # Its stubs do not say that it is a generator.
        replies: Any = self._servicer.ServerReflectionInfo(requests, None)
        async with aclosing(replies):
            async for reply in replies:
                await call.send(reply)


def pool_of(services: Iterable[str]) -> DescriptorPool:
    """Make a pool of the files of these services, of reflection in both versions, and of all they import."""
    default = descriptor_pool.Default()
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    for service in services:
        _add(pool, default.FindFileContainingSymbol(service), added)
    _add(pool, default.FindFileContainingSymbol(f"{ALPHA}.ServerReflection"), added)
    pool.Add(named(derived()))
    return pool


def named(file: FileDescriptorProto) -> FileDescriptorProto:
    """Give each field of a file the JSON name that the compiler would give it, in place; return the file."""
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            if not field.json_name:
                field.json_name = json_name(field.name)
    return file


def json_name(name: str) -> str:
    """Return the JSON name of a field: without underscores, each letter behind one made upper case."""
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def derived() -> FileDescriptorProto:
    """Derive the description of v1 from that of v1alpha."""
    alpha = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    renamed = FileDescriptorProto()
    renamed.CopyFrom(alpha)
    renamed.ClearField("options")
    renamed.name = alpha.name.replace("v1alpha", "v1")
    renamed.package = STABLE
    for message in renamed.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(ALPHA, STABLE)
    for service in renamed.service:
        for rpc in service.method:
            rpc.input_type = rpc.input_type.replace(ALPHA, STABLE)
            rpc.output_type = rpc.output_type.replace(ALPHA, STABLE)
    return renamed


def _add(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added)
    pool.Add(named(FileDescriptorProto.FromString(file.serialized_pb)))
