"""`behest reload` and `behest drain`: what operators tell a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client


@click.command()
@connected
async def reload(client: Client, out: Output) -> None:
    """Have the daemon read its configuration again, as SIGHUP does. What is wrong with it changes nothing."""
    changed = await client.daemon.reload()
    if out.is_json:
        out.document(changed)
        return
    for key in changed.changed_keys:
        click.echo(f"{key}, at the next start" if key in changed.restart_keys else key)
    if not changed.changed_keys:
        click.echo("nothing has changed")


@click.command()
@click.option(
    "--timeout", "seconds", type=click.FloatRange(min=0), help="Seconds that running runs get. Default: as configured."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
async def drain(client: Client, out: Output, seconds: float | None, *, yes: bool) -> None:
    """Stop the daemon: no new runs, the running ones get their time, then it exits. It cannot be taken back."""
    if not (yes or out.is_json):
        click.confirm(f"stop the daemon at {client.address}?", abort=True, err=True)
    out.document(await client.daemon.drain(seconds))
