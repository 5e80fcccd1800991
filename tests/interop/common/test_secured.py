"""Every client and every attached tool server with a daemon that asks for TLS and a token, in every language."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from behest.client import Client
from behest.security import Tls
from behestd.service.credentials import NewToken, new_token
from tests.auth.authority import Authority
from tests.daemon_process import running
from tests.interop.common.languages import BUILD_SECONDS, SECONDS, Language, program, told

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 180)

CONFIG = """
[limits]
drain_seconds = 0.1
[permissions]
default = "allow"
[server.tls]
certificate = "file:{home}/server.pem"
key = "file:{home}/server.key"
[auth]
tokens_file = "file:{home}/tokens.toml"
"""
TOKEN = """
[[auth.tokens]]
id = "{id}"
hash = "{hash}"
principal = "{role}"
role = "{role}"
revoked = {revoked}
"""


def entry(token: NewToken, role: str, revoked: str = "false") -> str:
    """The part of the configuration that knows a token."""
    return TOKEN.format(id=token.token_id, hash=token.stored, role=role, revoked=revoked)


async def test_a_client_and_a_tool_server_are_known_by_their_tokens_over_tls(  # C139, S1, S3
    language: Language, tmp_path: Path
) -> None:
    authority = Authority()
    authority.server().write(tmp_path, "server")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    user, tools = new_token(), new_token()
    known = tmp_path / "tokens.toml"
    known.write_text(entry(user, "user") + entry(tools, "tool_server"))
    config = CONFIG.format(home=tmp_path)
    trusting = {"CA_FILE": str(ca)}
    attached = ("attach", "{}", str(tmp_path / "calls"), tools.text)
    async with running(tmp_path / "daemon", config=config) as daemon:
        arguments = [argument.format(daemon.address) for argument in attached]
        async with program(language, "tools", *arguments, more=trusting) as server:
            await server.ready()
            order = '/tool echo {"text": "known"}'
            _, end = await told(language, daemon.address, "follow", order, more={**trusting, "TOKEN": user.text})
            _, unknown = await told(
                language, daemon.address, "follow", "hello", more={**trusting, "TOKEN": new_token().text}
            )
        async with Client(daemon.address, token=user.text, tls=Tls(ca=ca)) as client:
            calls = [call async for call in client.tool_calls.list()]
        order = (daemon.address, "follow", "/stall")
        async with program(language, "client", *order, more={**trusting, "TOKEN": user.text}) as client:
            facts = client.facts()
            await anext(facts)
            known.write_text(entry(user, "user", "true") + entry(tools, "tool_server"))
            os.kill(daemon.pid, signal.SIGHUP)
            # A client that took it for a restart would try again for a minute.
            async with asyncio.timeout(SECONDS / 2):
                *_, revoked = [fact async for fact in facts]
    assert end["end"] == "completed"
    assert [call.tool_name for call in calls] == ["echo"]
    assert revoked["reason"] == "AUTH_CREDENTIAL_REVOKED"
    assert unknown["reason"] == "AUTH_CREDENTIAL_INVALID"
    assert user.text not in daemon.log


async def test_no_client_sends_a_token_beyond_this_machine_in_the_clear(language: Language) -> None:  # S3
    # An address of documentation: nobody is there, and a client that tried would wait for a minute.
    async with program(language, "client", "192.0.2.1:7717", "follow", "hello", more={"TOKEN": "secret"}) as client:
        async with asyncio.timeout(SECONDS / 3):
            assert await client.end() not in (0, None)
        assert client.lines == []
