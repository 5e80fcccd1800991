"""`behest graphs`: ways of reasoning, checked, run, drawn and kept; and what they can be made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from behest import drawing
from behest import graphs as forms
from behest.cli.command import Exit, connected, pairs
from behest.cli.graph_files import is_file, read_graph
from behest.cli.ordering import OrderOptions, order_of, order_options, ordered
from behest.cli.show import short_name
from behest.errors import BehestError
from behest.v1 import graph_pb2, operator_pb2, reasoning_service_pb2, run_pb2, task_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import TypeAlias, Unpack

    from google.protobuf.message import Message

    from behest.cli.show import Output
    from behest.client import Client

    Format: TypeAlias = Literal["text", "mermaid", "dot", "json", "toml"]

COLUMNS = ("id", "version", "display_name", "labels", "update_time", "description")
OPERATOR_COLUMNS = ("name", "target", "intent")
STRATEGY_COLUMNS = ("name", "description")
_KINDS = graph_pb2.GraphProblemKind.DESCRIPTOR
_MISSING = frozenset({"REASONING_GRAPH_NOT_FOUND", "RUN_NOT_FOUND"})


class GraphRunOptions(OrderOptions):
    """The options of `behest graphs run`."""

    criterion: tuple[str, ...]
    constraint: tuple[str, ...]
    fact: tuple[str, ...]
    domain: str


@click.group()
def graphs() -> None:
    """Check, run, draw and keep ways of reasoning, and show what they can be made of.

    A FILE holds a graph in JSON or TOML; - is stdin.
    """


@graphs.command()
@click.argument("graph", metavar="FILE|-|ID")
@click.option("--agent", default="", help="Agent whose tools the nodes have. Default: tools are not looked up.")
@connected
async def validate(client: Client, out: Output, graph: str, agent: str) -> Exit:
    """Say everything that is wrong with a graph, with the node or edge; exit 1 when that is something."""
    found = read_graph(graph) if is_file(graph) else await client.graphs.get(graph)
    problems = await client.graphs.validate(found, agent_id=agent)
    if out.is_json:
        out.document(reasoning_service_pb2.ValidateGraphResponse(problems=problems))
    for problem in problems:
        out.done(line_of(problem))
    if not problems:
        out.done(f"valid: {len(found.nodes)} nodes, {len(found.edges)} edges")
    return Exit.FAILED if problems else Exit.DONE


@graphs.command()
@click.argument("words", nargs=-1, metavar="[FILE|ID] [TEXT]")
@order_options
@click.option("--criterion", multiple=True, help="By what it is seen that the goal is achieved; may be repeated.")
@click.option("--constraint", multiple=True, help="What must hold on the way; may be repeated.")
@click.option("--fact", multiple=True, help="What is known; may be repeated.")
@click.option("--domain", default="", help="Field that the task belongs to.")
@connected
async def run(client: Client, out: Output, words: tuple[str, ...], **options: Unpack[GraphRunOptions]) -> Exit | None:
    """Run a graph, or a --strategy, and follow it to its end: in a terminal as a drawing that changes.

    Ctrl-C cancels the run; a second Ctrl-C leaves it to itself and says how to watch it.
    """
    graph, *rest = ("", *words) if options["strategy"] else words or ("",)
    if len(rest) > 1 or not (graph or options["strategy"]):
        raise click.UsageError("give a FILE, an ID or a --strategy, and at most one TEXT")
    order = await order_of(client, options, graph)
    if task := task_of(options):
        order["task"] = task
    return await ordered(client, out, "".join(rest), options, order)


@graphs.command()
@click.argument("name", metavar="[FILE|-|ID|RUN]", required=False, default="")
@click.option("--version", type=click.IntRange(min=0), default=0, help="Version of a kept graph. Default: the newest.")
@click.option("--strategy", default="", metavar="NAME", help="Show the graph of a strategy.")
@click.option("-p", "--parameter", multiple=True, metavar="KEY=VALUE", help="Parameter of the strategy.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "dot", "json", "toml"]),
    default="text",
    show_default=True,
    help="A drawing, or the form of a file.",
)
@connected
async def show(
    client: Client,
    out: Output,
    name: str,
    *,
    version: int,
    strategy: str,
    parameter: tuple[str, ...],
    form: Format,
) -> None:
    """Draw a graph, or the graph of a run with states, times and costs of its nodes; or write it as a file."""
    if bool(name) == bool(strategy):
        raise click.UsageError("name a file, a graph or a run, or give a --strategy")
    if strategy:
        graph, reasoning = await client.graphs.make(strategy, pairs(parameter)), None
    elif is_file(name):
        graph, reasoning = read_graph(name), None
    else:
        graph, reasoning = await found(client, name, version)
    if out.is_json:
        out.document(graph if reasoning is None else reasoning)
    else:
        click.echo(text_of(graph, reasoning, form), nl=False)


@graphs.command()
@click.argument("file", metavar="FILE|-")
@click.option("--id", "graph_id", default="", help="Id. Default: that in the file, else one is made.")
@connected
async def create(client: Client, out: Output, file: str, graph_id: str) -> None:
    """Keep a graph, as version 1."""
    kept(out, await client.graphs.create(named(read_graph(file), graph_id)))


@graphs.command("list")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Graphs with this label; may be repeated.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Most graphs; 0 is all.")
@connected
async def list_graphs(client: Client, out: Output, label: tuple[str, ...], limit: int) -> None:
    """List the graphs that are kept, ordered by id."""
    request = reasoning_service_pb2.ListGraphsRequest(page_size=limit, labels=pairs(label))
    await out.listing(client.graphs.list(request), COLUMNS, limit)


@graphs.command()
@click.argument("file", metavar="FILE|-")
@click.option("--id", "graph_id", default="", help="Id. Default: that in the file.")
@click.option("--expected-version", type=click.IntRange(min=0), default=0, help="Version that the graph must be at.")
@connected
async def update(client: Client, out: Output, file: str, graph_id: str, expected_version: int) -> None:
    """Put a graph in the place of the one that is kept, as a new version."""
    graph = named(read_graph(file), graph_id)
    if not graph.id:
        raise click.UsageError("the file says no id: give --id")
    kept(out, await client.graphs.update(graph, expected_version=expected_version))


@graphs.command()
@click.argument("graph_id", metavar="ID")
@connected
async def delete(client: Client, out: Output, graph_id: str) -> None:
    """Delete a graph with all its versions."""
    await client.graphs.delete(graph_id)
    out.done(f"deleted {graph_id}")


@graphs.command()
@click.argument("name", required=False, default="")
@connected
async def operators(client: Client, out: Output, name: str) -> None:
    """List the operators that every graph has, or show one with its prompt."""
    await listed(out, await client.graphs.operators(), OPERATOR_COLUMNS, name)


@graphs.command()
@click.argument("name", required=False, default="")
@connected
async def strategies(client: Client, out: Output, name: str) -> None:
    """List the strategies, or show one with its parameters."""
    await listed(out, await client.graphs.strategies(), STRATEGY_COLUMNS, name)


async def listed(
    out: Output,
    known: Sequence[operator_pb2.Operator] | Sequence[graph_pb2.Strategy],
    columns: Sequence[str],
    name: str,
) -> None:
    """Print all of them, or the one of a name."""
    if not name:
        await out.listing(each(known), columns, 0)
        return
    chosen = [one for one in known if one.name == name]
    if not chosen:
        raise click.BadParameter(f"{name} is none of {', '.join(one.name for one in known)}")
    out.document(chosen[0])


async def each(messages: Sequence[Message]) -> AsyncIterator[Message]:
    """Yield messages as a listing takes them."""
    for message in messages:
        yield message


async def found(client: Client, name: str, version: int) -> tuple[graph_pb2.Graph, run_pb2.Reasoning | None]:
    """Return the graph that is kept under a name, or that the run of that name follows. Raises BehestError."""
    try:
        return await client.graphs.get(name, version=version), None
    except BehestError as error:
        if version or error.reason not in _MISSING:
            raise
        missing = error
    try:
        run = await client.runs.get(name)
    except BehestError as error:
        raise missing if error.reason in _MISSING else error from error
    if not run.HasField("reasoning"):
        raise click.ClickException(f"run {name} follows no graph")
    return run.reasoning.graph, run.reasoning


def text_of(graph: graph_pb2.Graph, reasoning: run_pb2.Reasoning | None, form: Format) -> str:
    """Return a graph, or a run of it, as it is asked for. The forms of files hold the graph alone."""
    match form:
        case "text":
            return drawing.terminal(graph, reasoning)
        case "mermaid":
            return drawing.mermaid(graph, reasoning)
        case "dot":
            return drawing.dot(graph, reasoning)
        case _:
            return forms.write(graph, form)


def task_of(options: GraphRunOptions) -> task_pb2.Task | None:
    """Return the task that options tell; None when they tell none."""
    task = task_pb2.Task(constraints=[task_pb2.Constraint(text=text) for text in options["constraint"]])
    if options["goal"] or options["criterion"]:
        task.goal.description = options["goal"]
        task.goal.success_criteria.extend(options["criterion"])
    if options["fact"] or options["domain"]:
        task.context.facts.extend(task_pb2.Fact(text=text) for text in options["fact"])
        task.context.domain = options["domain"]
    return task if task.ByteSize() else None


def named(graph: graph_pb2.Graph, graph_id: str) -> graph_pb2.Graph:
    """Return a graph under an id, where one is given."""
    graph.id = graph_id or graph.id
    return graph


def kept(out: Output, graph: graph_pb2.Graph) -> None:
    """Print which graph is kept."""
    if out.is_json:
        out.document(graph)
    out.done(f"{graph.id} is at version {graph.version}")


def line_of(problem: graph_pb2.GraphProblem) -> str:
    """Return what is wrong in a line."""
    places = [problem.node, f"edge {problem.edge}" if problem.edge else ""]
    where = ", ".join(place for place in places if place) or "graph"
    return f"{where}: {short_name(_KINDS, problem.kind).replace('_', ' ')}: {problem.message}"
