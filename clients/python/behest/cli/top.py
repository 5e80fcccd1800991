"""`behest top`: a live view of a daemon, from what GetStatus and ListModels tell."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from behest.cli.command import Exit, connected
from behest.cli.pause import subject
from behest.cli.show import as_json, short_name
from behest.errors import BehestError
from behest.v1 import model_pb2, run_state_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from behest.cli.show import Output
    from behest.client import Client
    from behest.v1.daemon_service_pb2 import GetServerInfoResponse, GetStatusResponse

ROWS = 20
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_HEALTH = model_pb2.ModelHealthState.DESCRIPTOR


@click.command()
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Look once, and end.")
@connected
async def top(client: Client, out: Output, interval: float, *, once: bool) -> Exit | None:
    """Show runs, models, tools, commits and pauses, again and again, until Ctrl-C. As JSON: a line each time."""
    info = await client.daemon.info()
    while True:
        try:
            status = await client.daemon.status()
            models = [model async for model in client.models.list()]
        except BehestError as error:
            if once or not error.is_undecided:
                raise
            out.note(f"{error}")
        else:
            if out.is_json:
                out.line({"status": as_json(status), "models": [as_json(model) for model in models]})
            else:
                if not once:
                    click.clear()
                click.echo("\n".join(view(info, status, models)))
        if once:
            return None
        await asyncio.sleep(interval)


def view(info: GetServerInfoResponse, status: GetStatusResponse, models: Sequence[model_pb2.Model]) -> Iterator[str]:
    """Yield the lines of one look."""
    refusing = ", ".join(status.refusing_reasons)
    state = click.style("accepting", fg="green") if status.accepting else click.style(f"refusing: {refusing}", fg="red")
    yield f"behestd {info.version} {info.replica} {state}"
    for pause in status.pauses:
        yield click.style(f"paused {subject(pause.target)} by {pause.principal}: {pause.reason}", fg="yellow")
    counts = {short_name(run_state_pb2.RunState.DESCRIPTOR, each.state): each.runs for each in status.runs}
    runs = "  ".join(f"{name} {count}" for name, count in counts.items()) or "none"
    yield f"runs     {runs}  (at most {status.max_active_runs} active, {status.max_queued_runs} queued)"
    commits = status.commits
    if commits.commits:
        median, p99 = (each.ToTimedelta().total_seconds() * 1000 for each in (commits.median, commits.p99))
        yield f"commits  median {median:.2f} ms  p99 {p99:.2f} ms"
    load = status.load
    memory, files = size(status.memory_bytes), f"{load.open_files} of {load.max_open_files}"
    yield f"machine  memory {memory}  open files {files}{disk(status)}  watchers {status.watchers}"
    yield ""
    yield from table(("MODEL", "HEALTH", "IN FLIGHT", "HELD", "LATENCY"), model_rows(status, models))
    yield ""
    yield f"tools    {status.tools} can be called, {status.tool_calls} calls in flight"
    tools = [(each.tool_name, str(each.in_flight), str(each.held)) for each in load.tools[:ROWS]]
    yield from table(("TOOL", "IN FLIGHT", "HELD"), tools)


def model_rows(status: GetStatusResponse, models: Sequence[model_pb2.Model]) -> list[tuple[str, ...]]:
    """Return a row a model: the busy ones first, then those that are not well, then the others."""
    loads = {each.model: each for each in status.load.models}
    healthy = model_pb2.MODEL_HEALTH_STATE_HEALTHY

    def rank(model: model_pb2.Model) -> tuple[bool, bool, str]:
        return model.id not in loads, model.health.state == healthy and not model.paused, model.id

    rows: list[tuple[str, ...]] = []
    for model in sorted(models, key=rank)[:ROWS]:
        load = loads.get(model.id)
        health = "paused" if model.paused else short_name(_HEALTH, model.health.state)
        busy = (str(load.in_flight), str(load.held)) if load is not None else ("0", "0")
        has_latency = load is not None and load.HasField("latency")
        latency = f"{load.latency.ToTimedelta().total_seconds():.2f} s" if load is not None and has_latency else ""
        rows.append((model.id, health, *busy, latency))
    return rows


def disk(status: GetStatusResponse) -> str:
    """Return how full the disk is, empty where nothing is kept on one."""
    if not status.load.HasField("disk"):
        return ""
    found = status.load.disk
    return f"  disk {size(found.free_bytes)} free of {size(found.total_bytes)} {found.file_system}"


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    unit = 0
    while count >= 1024 and unit + 1 < len(_UNITS):
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows under their names; nothing when there is none."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for row in (names, *rows):
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
