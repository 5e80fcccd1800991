"""Tokens and TLS in the Python client and at the command line."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from behest.cli import HELP, PLACES
from behest.cli.lazy import LazyGroup
from behest.client import Client
from behest.security import Tls, is_local
from behest.tools import ToolServer
from behestd.service.scopes import ROLES
from tests.auth.scenes import guest, knowing
from tests.daemons import refused, serve

FAR = "192.0.2.1:7717"


def behest(*arguments: str, **environ: str | None) -> Result:
    """Run a command."""
    return CliRunner(env={"BEHEST_ADDRESS": None, "BEHEST_TOKEN": None, **environ}).invoke(
        LazyGroup(PLACES, name="behest", help=HELP), arguments
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/behestd.sock", True),
        (FAR, False),
        ("example.com:1", False),
        ("localhost.example.com:1", False),
        ("[::ffff:192.0.2.1]:1", False),
        ("dns:///localhost:1", False),
        ("localhost", False),
    ],
)
def test_loopback_and_sockets_are_this_machine_and_nothing_else_is(address: str, *, expected: bool) -> None:
    assert is_local(address) is expected


async def test_a_token_leaves_this_machine_over_tls_only() -> None:  # S3
    with pytest.raises(ValueError, match="only over TLS") as caught:
        Client(FAR, token="behest_secret")
    assert "secret" not in str(caught.value)
    await Client(FAR, token="behest_secret", tls=Tls()).close()
    await Client(FAR, token="behest_secret", credentials=grpc.ssl_channel_credentials()).close()
    async with ToolServer() as server:
        with pytest.raises(ValueError, match="only over TLS"):
            await server.attach(FAR, name="tools", token="behest_secret")
    for unfit in ("a\nb", "ä"):
        with pytest.raises(ValueError, match="characters"):
            Client("127.0.0.1:1", token=unfit)


async def test_without_an_address_the_environment_names_address_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    user = guest(*ROLES["user"])
    async with serve(credentials=knowing(user)) as served:
        address = served.daemon.addresses[0]
        monkeypatch.setenv("BEHEST_ADDRESS", address)
        monkeypatch.setenv("BEHEST_TOKEN", user.text)
        async with Client() as client:
            await client.daemon.info()
            output = await client.stream("say hello").result()
            assert output.text == "say hello"
        # An address of one's own gets no token that was meant for another.
        async with Client(address) as client:
            assert (await refused(client.daemon.info())).reason == "AUTH_REQUIRED"


def test_half_a_pair_and_missing_files_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="come together"):
        Client("127.0.0.1:1", tls=Tls(certificate=b"pem"))
    with pytest.raises(FileNotFoundError):
        Client("127.0.0.1:1", tls=Tls(ca=tmp_path / "none.pem"))
    assert "hidden" not in repr(Tls(certificate=b"shown", key=b"hidden"))


@pytest.mark.parametrize("command", ["status", "sessions", "mcp-bridge"])
def test_commands_send_no_token_beyond_this_machine_in_the_clear(command: str, tmp_path: Path) -> None:  # S3
    token = tmp_path / "token"
    token.write_text("behest_secret\n")
    more = {"sessions": ("list",), "mcp-bridge": ("--name", "x", "--", "true")}.get(command, ())
    first, rest = (more[:1], more[1:]) if command == "sessions" else ((), more)
    for given in ({"BEHEST_TOKEN": "behest_secret"}, {}):
        option = () if given else ("--token-file", str(token))
        ended = behest(command, *first, "--address", FAR, *option, *rest, **given)
        assert ended.exit_code == 2
        assert "only over TLS" in ended.stderr
        assert "secret" not in ended.output + ended.stderr


def test_the_examination_of_a_server_sends_no_token_in_the_clear_either() -> None:  # S3
    for kind in ("tools", "models"):
        ended = behest("conformance", kind, FAR, "--token-env", "TOKEN", TOKEN="behest_secret")
        assert ended.exit_code == 2
        assert "only over TLS" in ended.stderr


def test_a_token_is_no_argument_of_any_command() -> None:  # S9
    for name in ("run", "status", "mcp-bridge", "mcp-serve"):
        shown = behest(name, "--help").stdout
        assert "--token-file" in shown
        assert "--token " not in shown
