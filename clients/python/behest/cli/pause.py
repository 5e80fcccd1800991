"""`behest pause` and `behest unpause`: the kill switch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected
from behest.cli.show import as_json, plain
from behest.errors import BehestError
from behest.v1 import daemon_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from behest.cli.show import Output
    from behest.client import Client

KINDS = {"tool": "tool_name", "model": "model", "agent": "agent_id", "namespace": "namespace"}
ALL = "all"

_kind = click.argument("kind", type=click.Choice([*KINDS, ALL]), metavar="tool|model|agent|namespace|all")
_name = click.argument("name", required=False)


def target_of(kind: str, name: str | None) -> daemon_service_pb2.PauseTarget:
    """Return what two arguments mean. Raises click.UsageError."""
    if kind == ALL:
        if name:
            raise click.UsageError("all has no name")
        return daemon_service_pb2.PauseTarget(all=True)
    if not name:
        raise click.UsageError(f"which {kind} is missing")
    return daemon_service_pb2.PauseTarget(**{KINDS[kind]: name})  # type: ignore[arg-type]  # one of its fields


@click.command()
@_kind
@_name
@click.option("--reason", required=True, help="Why, for people, the audit and the runs that wait.")
@connected
async def pause(client: Client, out: Output, kind: str, name: str | None, reason: str) -> None:
    """Stop a tool, a model, an agent, a namespace or all: nothing new of it begins.

    What is in flight ends as it would. Runs that need what is paused wait, a day at most, and go on when it is lifted.
    """
    shown(out, await client.daemon.pause(target_of(kind, name), reason))
    if name and not await is_known(client, kind, name):
        out.note(f"there is no {kind} {name} at present: it is paused should there be one")


@click.command()
@_kind
@_name
@connected
async def unpause(client: Client, out: Output, kind: str, name: str | None) -> None:
    """Lift the pause of exactly this; runs that waited for it go on."""
    shown(out, await client.daemon.unpause(target_of(kind, name)))


def shown(out: Output, pauses: Sequence[daemon_service_pb2.Pause]) -> None:
    """Print the pauses that are in force."""
    if out.is_json:
        out.line({"pauses": [as_json(pause) for pause in pauses]})
        return
    for pause in pauses:
        since = plain(pause.DESCRIPTOR.fields_by_name["create_time"], pause.create_time)
        click.echo(f"paused: {subject(pause.target)}, by {pause.principal} at {since}: {pause.reason}")
    if not pauses:
        click.echo("nothing is paused")


def subject(target: daemon_service_pb2.PauseTarget) -> str:
    """Return what is paused, as people name it."""
    field = target.WhichOneof("target") or ALL
    kind = next((kind for kind, each in KINDS.items() if each == field), ALL)
    return ALL if kind == ALL else f"{kind} {getattr(target, field)}"


async def is_known(client: Client, kind: str, name: str) -> bool:
    """Whether the daemon knows what was paused. A slip in a name pauses nothing."""
    look = {"tool": client.tools.get, "model": client.models.get, "agent": client.agents.get}.get(kind)
    if look is None:
        return True
    try:
        await look(name)
    except BehestError as error:
        return not error.reason.endswith("_NOT_FOUND")
    return True
