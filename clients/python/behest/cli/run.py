"""`behest run`, `watch`, `retry`: one run, from its order to its end."""

from __future__ import annotations

import asyncio
import mimetypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from behest.cli.command import Exit, connected, pairs
from behest.cli.follow import followed
from behest.v1 import message_pb2

if TYPE_CHECKING:
    from typing import Unpack

    from behest.cli.show import Output
    from behest.client import Client
    from behest.order import OrderFields

# Longer texts, and whatever is no text, are sent as artifacts.
INLINE_BYTES = 256 * 1024


class RunOptions(TypedDict):
    """The options of `behest run`."""

    session: str
    agent: str
    model: str
    tool: tuple[str, ...]
    label: tuple[str, ...]
    input: tuple[Path, ...]
    json_schema: Path | None
    timeout: float | None
    request_id: str
    no_watch: bool


@click.command()
@click.argument("text", required=False, default="")
@click.option("--session", default="", help="Session to run on. Default: a new one.")
@click.option("--agent", default="", help="Agent. Default: the default one.")
@click.option("--model", default="", help="Model, as provider/name. Default: the agent's.")
@click.option("--tool", multiple=True, help="Tool to offer, by name or glob; may be repeated. Default: the agent's.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Label; may be repeated.")
@click.option(
    "--input",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="File to add to the order, - for stdin; may be repeated. Other than short text is sent as an artifact.",
)
@click.option("--json-schema", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Form of the answer.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds that the run may take.")
@click.option("--request-id", default="", help="Makes the order repeatable. Default: a new one.")
@click.option("--no-watch", is_flag=True, help="Print the run and do not follow it.")
@connected
async def run(client: Client, out: Output, text: str, **options: Unpack[RunOptions]) -> Exit | None:
    """Order a run and follow it to its end.

    Ctrl-C cancels the run; a second Ctrl-C leaves it to itself and says how to watch it.
    """
    said = [message_pb2.Part(text=message_pb2.TextPart(text=text))] if text else []
    said += [await part_of(client, path, options["session"]) for path in options["input"]]
    if not said:
        raise click.UsageError("give a TEXT or an --input")
    order: OrderFields = {
        "session_id": options["session"],
        "agent_id": options["agent"],
        "model": options["model"],
        "tools": options["tool"],
        "labels": pairs(options["label"]),
    }
    if options["json_schema"] is not None:
        order["output_schema_json"] = options["json_schema"].read_text()
    if options["timeout"] is not None:
        order["timeout_seconds"] = options["timeout"]
    handle = client.stream(said, request_id=options["request_id"], **order)
    if not options["no_watch"]:
        return await followed(client, handle, out, cancels=True)
    out.document(await handle.get())
    return None


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Sequence of the last event already seen.")
@connected
async def watch(client: Client, out: Output, run_id: str, after: int) -> Exit:
    """Follow a run that exists. Ctrl-C leaves it to itself."""
    # Tells soon when there is no daemon or no run: the watch itself is patient.
    await client.runs.get(run_id)
    return await followed(client, client.watch(run_id, after=after), out, cancels=False)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--no-watch", is_flag=True, help="Print the new run and do not follow it.")
@connected
async def retry(client: Client, out: Output, run_id: str, no_watch: bool) -> Exit | None:
    """Run again what failed: a new run that starts from where the old one stood.

    Ctrl-C cancels the new run; a second Ctrl-C leaves it to itself and says how to watch it.
    """
    again = await client.runs.fork(run_id)
    if not no_watch:
        return await followed(client, client.watch(again.id), out, cancels=True)
    out.document(again)
    return None


async def part_of(client: Client, path: Path, session_id: str) -> message_pb2.Part:
    """Return a file as a part of the order, sent as an artifact unless it is a short text."""
    if str(path) == "-":
        content, name = await asyncio.to_thread(sys.stdin.buffer.read), "stdin"
    else:
        content, name = await asyncio.to_thread(path.read_bytes), path.name
    if len(content) <= INLINE_BYTES and b"\0" not in content:
        try:
            return message_pb2.Part(text=message_pb2.TextPart(text=content.decode()))
        except UnicodeDecodeError:
            pass
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    artifact = await client.artifacts.upload(content, name=name, media_type=media_type, session_id=session_id)
    if media_type.startswith("image/"):
        return message_pb2.Part(image=message_pb2.ImagePart(artifact_id=artifact.id, media_type=media_type))
    if media_type.startswith("audio/"):
        return message_pb2.Part(audio=message_pb2.AudioPart(artifact_id=artifact.id, media_type=media_type))
    return message_pb2.Part(file=message_pb2.FilePart(artifact_id=artifact.id, media_type=media_type, name=name))
