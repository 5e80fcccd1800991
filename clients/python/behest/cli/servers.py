"""`behest servers`: remote processes that serve the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected, pairs
from behest.cli.fields import fill
from behest.v1 import registry_service_pb2, server_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("id", "name", "connection", "address", "offers", "state", "tool_names", "error")


@click.group()
def servers() -> None:
    """Register remote processes."""


@servers.command("list")
@click.option("--name", default="", help="The server of this name.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Most servers. Default: all.")
@connected
async def list_servers(client: Client, out: Output, name: str, limit: int) -> None:
    """List servers, ordered by name."""
    request = registry_service_pb2.ListServersRequest(page_size=limit, name=name)
    await out.listing(client.servers.list(request), COLUMNS, limit)


@servers.command()
@click.argument("name")
@click.argument("endpoint", metavar="ADDRESS")
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--file", metavar="FILE", help="JSON file with more of the registration; - is stdin.")
@click.option("--replace", is_flag=True, help="Take the place of another registration of the name.")
@connected
async def register(
    client: Client, out: Output, name: str, endpoint: str, fields: tuple[str, ...], file: str | None, replace: bool
) -> None:
    """Register a server that listens on ADDRESS; it offers tools unless told otherwise.

    Pairs are such as offers=tools,chat or tool_policies.add.side_effect=pure.
    """
    server = server_pb2.Server()
    fill(server, file, pairs(fields))
    server.name, server.address = name, endpoint
    server.connection = server_pb2.SERVER_CONNECTION_DIALLED
    if not server.offers:
        server.offers.append(server_pb2.SERVER_OFFER_TOOLS)
    out.document(await client.servers.register(server, replace=replace))


@servers.command()
@click.argument("server_id", metavar="SERVER")
@connected
async def unregister(client: Client, out: Output, server_id: str) -> None:
    """Remove a registration."""
    await client.servers.unregister(server_id)
    out.done(f"unregistered {server_id}")
