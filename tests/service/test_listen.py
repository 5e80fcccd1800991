"""Where the daemon listens: loopback and sockets only, never twice, and nothing of anybody else's is taken away."""

import asyncio
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from behestd.service.call import Call
from behestd.service.listen import AddressRefused, AddressUnusable, parse
from behestd.service.scopes import Load
from behestd.service.server import Edge, Plan
from behestd.service.settings import Keepalive, Settings
from tests.service import edges
from tests.service.edges import connect, serving, until, watching_process


async def answer(request: Any, call: Call) -> bytes:
    """Do as asked."""
    return b""


async def quiet_watch(request: Any, call: Call) -> None:
    """Say one thing, then nothing."""
    await call.write(b"here")
    await asyncio.Event().wait()


def bind(*addresses: str) -> Edge:
    """Bind without starting."""
    return Edge(Plan({edges.GET: answer}, addresses))


@pytest.mark.parametrize(
    "text", ["", "7717", ":7717", "localhost", "localhost:", "127.0.0.1:-1", "127.0.0.1:65536", "h:\u0661", "unix:"]
)
def test_an_address_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(AddressRefused):
        parse(text)


@pytest.mark.parametrize(
    ("text", "is_local"),
    [
        ("127.0.0.1:0", True),
        ("127.8.9.1:1", True),
        ("[::1]:7717", True),
        ("localhost:7717", True),
        ("unix:/run/behestd.sock", True),
        ("0.0.0.0:7717", False),
        ("[::]:7717", False),
        ("192.168.1.1:7717", False),
        ("example.com:7717", False),
    ],
)
def test_loopback_and_sockets_are_local_and_nothing_else_is(text: str, *, is_local: bool) -> None:
    assert parse(text).is_local is is_local
    assert str(parse(text)) == text


async def test_an_address_that_others_can_reach_is_refused_without_credentials() -> None:
    with pytest.raises(AddressRefused):
        bind("0.0.0.0:0")


async def test_a_second_server_on_the_same_port_is_refused() -> None:
    async with serving({edges.GET: answer}) as edge:
        with pytest.raises(AddressUnusable):
            bind(edge.addresses[0])


async def test_port_zero_gives_back_the_port_that_was_found() -> None:
    async with serving({edges.GET: answer}) as edge, connect(edge) as channel:
        assert int(edge.addresses[0].rpartition(":")[2]) > 0
        assert await channel.unary_unary(edges.GET)(b"") == b""


async def test_a_socket_is_for_owner_and_group_beside_a_port_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "behestd.sock"
    async with serving({edges.GET: answer}, addresses=(f"unix:{path}", "127.0.0.1:0")) as edge:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert len(edge.addresses) == 2
        async with connect(edge) as channel:
            assert await channel.unary_unary(edges.GET)(b"") == b""
    assert not path.exists()


async def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "behestd.sock"
    async with serving({edges.GET: answer}, addresses=(f"unix:{path}",)) as edge:
        with pytest.raises(AddressUnusable):
            bind(f"unix:{path}")
        async with connect(edge) as channel:
            assert await channel.unary_unary(edges.GET)(b"") == b""


async def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "behestd.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with serving({edges.GET: answer}, addresses=(f"unix:{path}",)) as edge, connect(edge) as channel:
        assert await channel.unary_unary(edges.GET)(b"") == b""


async def test_a_socket_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "behestd.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(path))
        with pytest.raises(AddressUnusable):
            bind(f"unix:{path}")
    assert path.exists()


async def test_a_file_in_the_place_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "behestd.sock"
    path.write_text("precious")
    with pytest.raises(AddressUnusable):
        bind(f"unix:{path}")
    assert path.read_text() == "precious"


async def test_a_frozen_client_is_let_go_within_the_ping_timeout() -> None:
    keepalive = Keepalive(interval_seconds=0.2, timeout_seconds=0.2)
    async with serving({edges.WATCH: quiet_watch}, Settings(keepalive=keepalive)) as edge:
        async with watching_process(edge) as client:
            assert edge.admission.statistics().in_flight[Load.WATCH] == 1
            client.send_signal(signal.SIGSTOP)
            await until(lambda: edge.admission.statistics().in_flight[Load.WATCH] == 0)
