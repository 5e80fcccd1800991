"""`behest usage`: what calls of models used and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from behest.cli.command import connected
from behest.cli.fields import enum_name
from behest.cli.show import cell
from behest.v1 import usage_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = {
    "day": "day",
    "model": "model",
    "agent": "agent_id",
    "session": "session_id",
    "run": "run_id",
    "purpose": "purpose",
    "namespace": "namespace",
}
FIGURES = ("usage.attempts", "usage.input_tokens", "usage.output_tokens", "usage.cached_input_tokens")
DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.command()
@click.option("--by", multiple=True, type=click.Choice(tuple(COLUMNS)), help="Group by this; may be repeated.")
@click.option("--since", type=DAY, default=None, help="Calls that ended then or later, in UTC.")
@click.option("--until", type=DAY, default=None, help="Calls that ended before, in UTC.")
@click.option("--model", default="", help="Calls of this model, provider/name.")
@click.option("--agent", default="", help="Calls of runs of this agent.")
@click.option("--session", default="", help="Calls charged to this session.")
@click.option("--run", default="", help="Calls of this run.")
@click.option("--purpose", default="", help="run, chat, embedding or compaction.")
@connected
async def usage(client: Client, out: Output, /, by: tuple[str, ...], **asked: Any) -> None:
    """Sum up tokens and cost, with a line for each group and one for all."""
    whole = await _whole(client, _request(by, **asked))
    if out.is_json:
        out.document(whole)
        return
    columns = [COLUMNS[name] for name in by]
    table = [[*by, "calls", "input", "output", "cached", "hits", "cost_usd"]]
    table += [[*(cell(row, column) for column in columns), *_figures(row)] for row in whole.rows]
    table.append([*(("total", *[""] * (len(by) - 1)) if by else ()), *_figures(whole.total)])
    widths = [max(len(row[number]) for row in table) for number in range(len(table[0]))]
    table[0] = [text.upper() for text in table[0]]
    for line in table:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _request(
    by: tuple[str, ...],
    *,
    since: datetime | None,
    until: datetime | None,
    purpose: str,
    **filters: str,
) -> pb.QueryUsageRequest:
    names = [enum_name(pb.UsageDimension.DESCRIPTOR, name) for name in by]
    request = pb.QueryUsageRequest(
        page_size=1000,
        group_by=[pb.UsageDimension.Value(name) for name in names],
        model=filters["model"],
        agent_id=filters["agent"],
        session_id=filters["session"],
        run_id=filters["run"],
    )
    if purpose:
        request.purpose = pb.UsagePurpose.Value(enum_name(pb.UsagePurpose.DESCRIPTOR, purpose))
    if since is not None:
        request.start_time.FromDatetime(since)
    if until is not None:
        request.end_time.FromDatetime(until)
    return request


async def _whole(client: Client, request: pb.QueryUsageRequest) -> pb.QueryUsageResponse:
    """All pages as one."""
    whole = await client.usage.query(request)
    while whole.next_page_token:
        request.page_token = whole.next_page_token
        page = await client.usage.query(request)
        whole.rows.extend(page.rows)
        whole.next_page_token = page.next_page_token
    return whole


def _figures(row: pb.UsageRow) -> Iterator[str]:
    yield from (cell(row, path) for path in FIGURES)
    yield f"{row.cache_hit_ratio:.0%}" if row.HasField("cache_hit_ratio") else ""
    known = row.usage.attempts - row.unpriced_calls
    cost = f"{row.usage.cost_micro_usd / 1e6:.6f}" if known or not row.usage.attempts else "unknown"
    yield f"{cost} and {row.unpriced_calls} calls unknown" if known and row.unpriced_calls else cost
