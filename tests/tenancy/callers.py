"""Callers of namespaces: a daemon that knows them by tokens, and a way to call any method as one of them."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message

import behest.v1
from behest.errors import from_rpc
from behestd.core.times import SECOND
from behestd.service import methods
from behestd.service.credentials import Credentials, NewToken, Token, digest, new_token
from behestd.service.scopes import ADMIN, SCOPES, Caller
from tests import daemons
from tests.daemons import Served

PATIENCE_SECONDS = 30.0
"""How long an answer may take on a machine whose cores are all busy."""
TENANT = SCOPES - {ADMIN}


def contract() -> list[str]:
    """The full name of each method of the contract."""
    names = []
    for module in pkgutil.iter_modules(behest.v1.__path__):
        if module.name.endswith("_service_pb2"):
            file = importlib.import_module(f"behest.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                names += [f"/{service.full_name}/{method.name}" for method in service.methods]
    return sorted(names)


class StillClock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self._now_ns = time.time_ns()

    def now_ns(self) -> int:
        """The time."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Move it on."""
        self._now_ns += int(seconds * SECOND)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call: the frames, or one answer, and the error it ended with."""

    frames: tuple[Message, ...]
    code: str = "OK"
    reason: str = ""
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def data(self) -> bytes:
        """Everything that came, for a search."""
        texts = [value for pair in self.metadata for value in pair]
        return b"".join(frame.SerializeToString() for frame in self.frames) + "\0".join(texts).encode()


@dataclass(frozen=True, slots=True)
class Tenant:
    """One caller, on a channel to the daemon."""

    channel: grpc.aio.Channel
    caller: Caller
    token: str

    async def call(self, method: str, *requests: Message) -> Outcome:
        """Call any method, and read its answer to the end, or to where it has told everything that there is."""
        descriptor = methods.describe(method)
        answer_type = message_factory.GetMessageClass(descriptor.output_type)
        kind = f"{'stream' if descriptor.client_streaming else 'unary'}_"
        kind += "stream" if descriptor.server_streaming else "unary"
        opened = getattr(self.channel, kind)(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_type.FromString,
        )
        given: Any = iter(requests) if descriptor.client_streaming else requests[0]
        metadata = [("authorization", f"Bearer {self.token}")]
        if descriptor.client_streaming and descriptor.server_streaming:
            # The stream of a server goes on for as long as the server likes.
            given = _held(requests)
        frames: list[Message] = []
        call = opened(given, metadata=metadata)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if not descriptor.server_streaming:
                    frames.append(await call)
                else:
                    async for frame in call:
                        frames.append(frame)
                        if getattr(frame, "caught_up", False) or hasattr(frame, "welcome"):
                            break
        except grpc.aio.AioRpcError as error:
            known = from_rpc(error)
            return Outcome(tuple(frames), error.code().name, known.reason, tuple(sorted(known.metadata.items())))
        finally:
            call.cancel()
        return Outcome(tuple(frames))

    async def one(self, method: str, *requests: Message) -> Any:
        """Call a method that must answer, and give its last message."""
        outcome = await self.call(method, *requests)
        assert outcome.code == "OK", (method, outcome)
        return outcome.frames[-1]


async def _held(requests: Iterable[Message]) -> AsyncIterator[Message]:
    for request in requests:
        yield request
    await asyncio.Event().wait()


def credentials(callers: Iterable[Caller]) -> tuple[Credentials, Mapping[str, NewToken]]:
    """Give a token to each caller; they are told apart by their principals."""
    given = {caller.principal: (caller, new_token()) for caller in callers}
    tokens = {
        made.token_id: Token(
            digest(made.text),
            Caller(caller.principal, caller.namespace, caller.scopes, f"token:{made.token_id}"),
        )
        for caller, made in given.values()
    }
    return Credentials(tokens), {principal: made for principal, (_, made) in given.items()}


@asynccontextmanager
async def serving(
    callers: Sequence[Caller], store: str = "memory", **plan: Any
) -> AsyncIterator[tuple[Served, list[Tenant]]]:
    """Serve callers, each of whom has a token, in their order."""
    known, tokens = credentials(callers)
    async with daemons.serve(store, credentials=known, **plan) as served:
        yield served, [Tenant(served.channel, caller, tokens[caller.principal].text) for caller in callers]
