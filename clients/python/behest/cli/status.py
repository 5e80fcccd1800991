"""`behest status`: the daemon itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected
from behest.cli.show import as_json, described

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client


@click.command()
@connected
async def status(client: Client, out: Output) -> None:
    """Show what the daemon is and how it does."""
    info, now = await client.daemon.info(), await client.daemon.status()
    if out.is_json:
        out.line({"info": as_json(info), "status": as_json(now)})
        return
    for line in (*described(info), *described(now)):
        click.echo(line)
