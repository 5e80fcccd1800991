"""Callers with tokens for tests, and the calls that they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc

from behestd.service import reflection
from behestd.service.credentials import Credentials, Token, digest, new_token
from behestd.service.methods import describe
from behestd.service.scopes import Caller
from tests.service.edges import answered, drain

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Guest:
    """Somebody with a token."""

    text: str = field(repr=False)
    token: Token
    token_id: str

    @property
    def metadata(self) -> Metadata:
        """What the guest's calls bring."""
        return (("authorization", f"Bearer {self.text}"),)


def guest(*scopes: str, principal: str = "guest", namespace: str = "default", expires_ns: int = 0) -> Guest:
    """Give somebody a token."""
    made = new_token()
    caller = Caller(principal, namespace, frozenset(scopes), f"token:{made.token_id}", expires_ns)
    return Guest(made.text, Token(digest(made.text), caller), made.token_id)


def knowing(*guests: Guest, revoked: Iterable[Guest] = ()) -> Credentials:
    """The credentials of guests; those of some were taken back."""
    gone = {each.token_id for each in revoked}
    every = (*guests, *revoked)
    return Credentials(
        tokens={
            each.token_id: Token(each.token.digest, each.token.caller, is_revoked=each.token_id in gone)
            for each in every
        }
    )


def kind_of(name: str) -> str:
    """What grpc calls methods of the shape of this one."""
    descriptor = reflection.method() if name in reflection.METHODS else describe(name)
    request, response = (
        "stream" if streams else "unary" for streams in (descriptor.client_streaming, descriptor.server_streaming)
    )
    return f"{request}_{response}"


async def called(channel: grpc.aio.Channel, name: str, metadata: Metadata = (), body: bytes = b"\xff") -> Any:
    """Call a method by bytes, by default such that no request can be read from, and return what it answers."""
    kind = kind_of(name)
    request = iter([body]) if kind.startswith("stream") else body
    call = getattr(channel, kind)(name)(request, metadata=metadata)
    return await (drain(call) if kind.endswith("stream") else answered(call))
