"""What the commands that order a run have in common: their options, and the order that is made of them.

Above: `run` and `graphs`. Below: `behest.order` and `graph_files`.
"""

from __future__ import annotations

import asyncio
import mimetypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from behest.cli.command import Exit, pairs
from behest.cli.follow import followed
from behest.cli.graph_files import is_file, read_graph
from behest.v1 import message_pb2, task_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from behest.cli.show import Output
    from behest.client import Client
    from behest.order import OrderFields

# Longer texts, and whatever is no text, are sent as artifacts.
INLINE_BYTES = 256 * 1024
Command = TypeVar("Command", bound="Callable[..., Any]")


class OrderOptions(TypedDict):
    """The options of every command that orders a run."""

    session: str
    agent: str
    model: str
    tool: tuple[str, ...]
    label: tuple[str, ...]
    strategy: str
    parameter: tuple[str, ...]
    goal: str
    input: tuple[Path, ...]
    timeout: float | None
    request_id: str
    no_watch: bool


_OPTIONS = (
    click.option("--session", default="", help="Session to run on. Default: a new one."),
    click.option("--agent", default="", help="Agent. Default: the default one."),
    click.option("--model", default="", help="Model, as provider/name. Default: the agent's."),
    click.option(
        "--tool", multiple=True, help="Tool to offer, by name or glob; may be repeated. Default: the agent's."
    ),
    click.option("--label", multiple=True, metavar="KEY=VALUE", help="Label; may be repeated."),
    click.option("--strategy", default="", metavar="NAME", help="Strategy to follow: see `behest graphs strategies`."),
    click.option(
        "-p", "--parameter", multiple=True, metavar="KEY=VALUE", help="Parameter of the strategy; may be repeated."
    ),
    click.option("--goal", default="", help="What a graph or strategy is to achieve. Default: the order itself."),
    click.option(
        "--input",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
        help="File to add to the order, - for stdin; may be repeated. Other than short text is sent as an artifact.",
    ),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds that the run may take."),
    click.option("--request-id", default="", help="Makes the order repeatable. Default: a new one."),
    click.option("--no-watch", is_flag=True, help="Print the run and do not follow it."),
)


def order_options(command: Command) -> Command:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


async def order_of(client: Client, options: OrderOptions, graph: str = "") -> OrderFields:
    """Return the order that options say; the graph is a file or an id, empty for none. Raises click.UsageError."""
    if graph and options["strategy"]:
        raise click.UsageError("give a graph or a --strategy, not both")
    if options["parameter"] and not options["strategy"]:
        raise click.UsageError("parameters are those of a --strategy")
    order: OrderFields = {
        "session_id": options["session"],
        "agent_id": options["agent"],
        "model": options["model"],
        "tools": options["tool"],
        "labels": pairs(options["label"]),
    }
    if options["strategy"]:
        order["strategy"], order["strategy_parameters"] = options["strategy"], dict(pairs(options["parameter"]))
    elif is_file(graph):
        order["graph"] = read_graph(graph)
    elif graph:
        order["graph_id"] = graph
    if options["goal"]:
        order["task"] = task_pb2.Task(goal=task_pb2.Goal(description=options["goal"]))
    if options["timeout"] is not None:
        order["timeout_seconds"] = options["timeout"]
    return order


async def ordered(client: Client, out: Output, text: str, options: OrderOptions, order: OrderFields) -> Exit | None:
    """Order a run with a text and files, and follow it to its end unless that is not wanted."""
    said = [message_pb2.Part(text=message_pb2.TextPart(text=text))] if text else []
    said += [await part_of(client, path, options["session"]) for path in options["input"]]
    if not said and "task" not in order:
        raise click.UsageError("give a TEXT or an --input")
    handle = client.stream(said, request_id=options["request_id"], **order)
    if not options["no_watch"]:
        return await followed(client, handle, out, cancels=True)
    out.document(await handle.get())
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
