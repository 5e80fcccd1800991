"""`behest explain`: why a run is not moving."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected
from behest.cli.show import plain, short_name
from behest.v1 import run_state_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client
    from behest.v1 import run_service_pb2


@click.command()
@click.argument("run_id", metavar="RUN")
@connected
async def explain(client: Client, out: Output, run_id: str) -> None:
    """Say why a run is not moving: what it waits for, and behind that what that waits for, the nearest first."""
    found = await client.runs.explain(run_id)
    if out.is_json:
        out.document(found)
        return
    click.echo(f"{run_id} is {short_name(run_state_pb2.RunState.DESCRIPTOR, found.state)}")
    for obstacle in found.obstacles:
        click.echo(line_of(obstacle))


def line_of(obstacle: run_service_pb2.RunObstacle) -> str:
    """Return one cause as people read it."""
    fields = obstacle.DESCRIPTOR.fields_by_name
    text = f"  {obstacle.kind} {obstacle.subject}: {obstacle.message}"
    if obstacle.HasField("since"):
        text += f", since {plain(fields['since'], obstacle.since)}"
    if obstacle.HasField("until"):
        text += f", until {plain(fields['until'], obstacle.until)} at the latest"
    return text
