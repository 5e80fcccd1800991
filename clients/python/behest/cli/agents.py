"""`behest agents`: definitions of how runs are executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected, pairs
from behest.cli.fields import fill
from behest.v1 import agent_pb2, agent_service_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("id", "version", "model", "tools", "is_default", "description")


@click.group()
def agents() -> None:
    """Keep definitions of how runs are executed."""


@agents.command("list")
@click.option("--hidden", is_flag=True, help="Hidden ones too.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Most agents; 0 is all.")
@connected
async def list_agents(client: Client, out: Output, hidden: bool, limit: int) -> None:
    """List agents, ordered by id."""
    request = agent_service_pb2.ListAgentsRequest(page_size=limit, include_hidden=hidden)
    await out.listing(client.agents.list(request), COLUMNS, limit)


@agents.command()
@click.argument("agent_id", metavar="AGENT")
@click.option("--version", type=click.IntRange(min=0), default=0, help="Version. Default: the newest.")
@connected
async def get(client: Client, out: Output, agent_id: str, version: int) -> None:
    """Show an agent."""
    out.document(await client.agents.get(agent_id, version=version))


@agents.command()
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--file", metavar="FILE", help="JSON file with the agent; - is stdin.")
@connected
async def create(client: Client, out: Output, fields: tuple[str, ...], file: str | None) -> None:
    """Create an agent from a JSON file, from pairs such as id=helper instructions=@prompt.txt, or both."""
    agent = agent_pb2.Agent()
    fill(agent, file, pairs(fields))
    out.document(await client.agents.create(agent))


@agents.command()
@click.argument("agent_id", metavar="AGENT")
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--file", metavar="FILE", help="JSON file with the fields to change; - is stdin.")
@click.option("--expected-version", type=click.IntRange(min=1), help="Version that the agent must be at.")
@connected
async def update(
    client: Client, out: Output, agent_id: str, fields: tuple[str, ...], file: str | None, expected_version: int | None
) -> None:
    """Change the named fields of an agent, and make a new version."""
    agent = agent_pb2.Agent()
    names = [name for name in fill(agent, file, pairs(fields)) if name != "id"]
    if not names:
        raise click.UsageError("give a KEY=VALUE or a --file")
    agent.id = agent_id
    out.document(await client.agents.update(agent, names, expected_version=expected_version))


@agents.command()
@click.argument("agent_id", metavar="AGENT")
@connected
async def delete(client: Client, out: Output, agent_id: str) -> None:
    """Delete an agent with all its versions."""
    await client.agents.delete(agent_id)
    out.done(f"deleted {agent_id}")
