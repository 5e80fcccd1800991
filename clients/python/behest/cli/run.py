"""`behest run`, `watch`, `retry`: one run, from its order to its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from behest.cli.command import Exit, connected
from behest.cli.follow import followed
from behest.cli.live import is_terminal
from behest.cli.ordering import OrderOptions, order_of, order_options, ordered

if TYPE_CHECKING:
    from typing import Unpack

    from behest.cli.show import Output
    from behest.client import Client


class RunOptions(OrderOptions):
    """The options of `behest run`."""

    graph: str
    json_schema: Path | None


@click.command()
@click.argument("text", required=False, default="")
@order_options
@click.option(
    "--graph", default="", metavar="FILE|ID", help="Reasoning graph to follow, in a JSON or TOML file or kept."
)
@click.option("--json-schema", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Form of the answer.")
@connected
async def run(client: Client, out: Output, text: str, **options: Unpack[RunOptions]) -> Exit | None:
    """Order a run and follow it to its end.

    Ctrl-C cancels the run; a second Ctrl-C leaves it to itself and says how to watch it.
    """
    order = await order_of(client, options, options["graph"])
    if options["json_schema"] is not None:
        order["output_schema_json"] = options["json_schema"].read_text()
    return await ordered(client, out, text, options, order)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Sequence of the last event already seen.")
@connected
async def watch(client: Client, out: Output, run_id: str, after: int) -> Exit:
    """Follow a run that exists. Ctrl-C leaves it to itself."""
    # Tells soon when there is no daemon or no run: the watch itself is patient.
    found = await client.runs.get(run_id)
    reasoning = None
    if after and found.HasField("reasoning") and is_terminal():
        reasoning = (await client.runs.get(run_id, at_sequence=min(after, found.head_sequence))).reasoning
    handle = client.watch(run_id, after=after)
    return await followed(client, handle, out, cancels=False, reasoning=reasoning)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--visit", type=click.IntRange(min=0), default=0, help="Start right before this visit of a graph's node.")
@click.option("--no-watch", is_flag=True, help="Print the new run and do not follow it.")
@connected
async def retry(client: Client, out: Output, run_id: str, visit: int, no_watch: bool) -> Exit | None:
    """Run again what failed: a new run that starts from where the old one stood.

    Ctrl-C cancels the new run; a second Ctrl-C leaves it to itself and says how to watch it.
    """
    again = await client.runs.fork(run_id, visit=visit)
    if not no_watch:
        return await followed(client, client.watch(again.id), out, cancels=True)
    out.document(again)
    return None
