"""`behest sessions`: conversations and their messages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from behest.cli.command import connected, pairs
from behest.cli.show import as_json, plain
from behest.v1 import message_pb2, session_pb2, session_service_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("id", "title", "agent_id", "create_time", "update_time", "labels")
ROLE = message_pb2.Message.DESCRIPTOR.fields_by_name["role"]


@click.group()
def sessions() -> None:
    """Keep conversations."""


@sessions.command("list")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Sessions with this label; may be repeated.")
@click.option("--archived", is_flag=True, help="Archived ones too.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Most sessions; 0 is all.")
@connected
async def list_sessions(client: Client, out: Output, label: tuple[str, ...], archived: bool, limit: int) -> None:
    """List sessions, newest first."""
    request = session_service_pb2.ListSessionsRequest(page_size=limit, labels=pairs(label), include_archived=archived)
    await out.listing(client.sessions.list(request), COLUMNS, limit)


@sessions.command()
@click.argument("session_id", metavar="SESSION")
@connected
async def get(client: Client, out: Output, session_id: str) -> None:
    """Show a session, with its active and its queued runs."""
    out.document(await client.sessions.get(session_id))


@sessions.command()
@click.option("--id", "session_id", default="", help="Id to give it. Default: a new one.")
@click.option("--title", default="", help="Title to show.")
@click.option("--agent", default="", help="Agent of runs that name none.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Label; may be repeated.")
@connected
async def create(client: Client, out: Output, session_id: str, title: str, agent: str, label: tuple[str, ...]) -> None:
    """Create a session."""
    session = session_pb2.Session(id=session_id, title=title, agent_id=agent, labels=pairs(label))
    out.document(await client.sessions.create(session))


@sessions.command()
@click.argument("session_id", metavar="SESSION")
@connected
async def delete(client: Client, out: Output, session_id: str) -> None:
    """Delete a session with its runs, messages and artifacts."""
    await client.sessions.delete(session_id)
    out.done(f"deleted {session_id}")


@sessions.command()
@click.argument("session_id", metavar="SESSION")
@click.option("--upto", default="", metavar="MESSAGE", help="Last message to take over. Default: all.")
@click.option("--title", default="", help="Title of the new one. Default: the same.")
@connected
async def fork(client: Client, out: Output, session_id: str, upto: str, title: str) -> None:
    """Create a session that starts with the messages of another."""
    out.document(await client.sessions.fork(session_id, upto_message_id=upto, title=title))


@sessions.command()
@click.argument("session_id", metavar="SESSION")
@click.option("--summaries", is_flag=True, help="Summaries of compaction too.")
@connected
async def messages(client: Client, out: Output, session_id: str, summaries: bool) -> None:
    """Show what was said, oldest first."""
    async for message in client.sessions.messages(session_id, include_summaries=summaries):
        if out.is_json:
            out.line(as_json(message))
            continue
        for part in message.parts:
            click.echo(f"{plain(ROLE, message.role)}: {line_of(part)}")


@sessions.command()
@click.argument("session_id", metavar="SESSION")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@connected
async def export(client: Client, out: Output, session_id: str, file: Path) -> None:
    """Write a session with its runs, messages, scratch data and artifacts into FILE. FILE - is stdout."""
    with click.open_file(str(file), "wb", atomic=str(file) != "-") as stream:
        async for chunk in client.sessions.export(session_id):
            stream.write(chunk)
    if str(file) != "-":
        out.done(f"exported {session_id} to {file}")


@sessions.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--request-id", default="", help="Makes it repeatable. Default: a new one.")
@connected
async def import_session(client: Client, out: Output, file: Path, request_id: str) -> None:
    """Create a session from FILE, which an export wrote. It keeps its ids."""
    out.document(await client.sessions.load(file, request_id=request_id))


def line_of(part: message_pb2.Part) -> str:
    """Return a part of a message as people read it."""
    match part.WhichOneof("kind"):
        case "text":
            return part.text.text
        case "json":
            return part.json.json
        case "tool_call":
            return f"→ {part.tool_call.name} {part.tool_call.arguments_json}"
        case "tool_result":
            return f"← {part.tool_result.name} " + " ".join(line_of(each) for each in part.tool_result.parts)
        case kind:
            return f"({kind})"
