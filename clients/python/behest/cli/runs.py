"""`behest runs`: runs as records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from behest.cli.command import connected, pairs
from behest.cli.fields import enum_name
from behest.cli.show import as_json
from behest.v1 import run_service_pb2, run_state_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("id", "state", "session_id", "agent_id", "create_time", "end_time", "labels", "output.text")


@click.group()
def runs() -> None:
    """List, show, explain, export and delete runs."""


@runs.command("list")
@click.option("--session", default="", help="Runs of this session.")
@click.option("--agent", default="", help="Runs of this agent.")
@click.option("--state", multiple=True, help="Runs in this state; may be repeated.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Runs with this label; may be repeated.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Most runs; 0 is all.")
@connected
async def list_runs(
    client: Client, out: Output, session: str, agent: str, state: tuple[str, ...], label: tuple[str, ...], limit: int
) -> None:
    """List runs, newest first."""
    names = [enum_name(run_state_pb2.RunState.DESCRIPTOR, each) for each in state]
    request = run_service_pb2.ListRunsRequest(
        page_size=limit,
        session_id=session,
        agent_id=agent,
        states=[run_state_pb2.RunState.Value(name) for name in names],
        labels=pairs(label),
    )
    await out.listing(client.runs.list(request), COLUMNS, limit)


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("--at", type=click.IntRange(min=0), default=0, help="Sequence at which to look at it. Default: now.")
@connected
async def get(client: Client, out: Output, run_id: str, at: int) -> None:
    """Show a run with its messages."""
    out.document(await client.runs.get(run_id, at_sequence=at))


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@connected
async def export(client: Client, out: Output, run_id: str, file: Path) -> None:
    """Write the events of a run into FILE, a JSON object a line, up to its end. FILE - is stdout."""
    with click.open_file(str(file), "w", encoding="utf-8", atomic=str(file) != "-") as stream:
        async for event in client.watch(run_id).events():
            stream.write(json.dumps(as_json(event), ensure_ascii=False) + "\n")
    if str(file) != "-":
        out.done(f"exported {run_id} to {file}")


@runs.command()
@click.argument("run_id", metavar="RUN")
@connected
async def delete(client: Client, out: Output, run_id: str) -> None:
    """Delete the log and the record of a run that has ended."""
    await client.runs.delete(run_id)
    out.done(f"deleted {run_id}")


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.argument("text")
@connected
async def send(client: Client, out: Output, run_id: str, text: str) -> None:
    """Say something to a run; a run that asked its user takes it for the answer."""
    sequence = await client.watch(run_id).send(text)
    out.done(f"said to {run_id}, as event {sequence}")


@runs.command()
@click.argument("run_id", metavar="RUN")
@connected
async def explain(client: Client, out: Output, run_id: str) -> None:
    """Say why a run is not moving."""
    out.document(await client.runs.explain(run_id))
