"""`behest context`: what a model would see, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("name", "kind", "on_failure", "max_tokens", "max_share_percent", "description")


@click.group()
def context() -> None:
    """Show what models see beside an order, and where it comes from."""


@context.command()
@click.argument("text", required=False, default="")
@click.option("--session", default="", help="Session whose messages come before. Default: none.")
@click.option("--agent", default="", help="Agent. Default: the default one.")
@click.option("--model", default="", help="Model, as provider/name. Default: the agent's.")
@connected
async def preview(client: Client, out: Output, text: str, session: str, agent: str, model: str) -> None:
    """Show the first model call of a run that would be created now. Nothing is recorded."""
    built = await client.context.preview(text or [], session_id=session, agent_id=agent, model=model)
    out.document(built)


@context.command("list")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Most sources. Default: all.")
@connected
async def list_sources(client: Client, out: Output, limit: int) -> None:
    """List the sources that agents can name."""
    await out.listing(client.context.sources(), COLUMNS, limit)
