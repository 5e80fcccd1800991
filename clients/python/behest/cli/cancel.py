"""`behest cancel`: one run, those of a session or an agent, or all."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, TypedDict

import click

from behest.cli.command import Exit, connected
from behest.errors import BehestError
from behest.v1 import run_service_pb2, run_state_pb2

if TYPE_CHECKING:
    from typing import Unpack

    from behest.cli.show import Output
    from behest.client import Client

AT_ONCE = 16
_PAGE = 1000
_LIVE = (
    run_state_pb2.RUN_STATE_QUEUED,
    run_state_pb2.RUN_STATE_RUNNING,
    run_state_pb2.RUN_STATE_WAITING,
)
_CANCELLING = run_state_pb2.RUN_STATE_CANCELLING


class CancelOptions(TypedDict):
    """The options of `behest cancel`."""

    session: str
    agent: str
    everything: bool
    force: bool
    reason: str
    yes: bool


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--session", default="", help="Cancel the runs of this session.")
@click.option("--agent", default="", help="Cancel the runs of this agent.")
@click.option("--all", "everything", is_flag=True, help="Cancel every run of the namespace.")
@click.option("--force", is_flag=True, help="Do not wait for effects in flight: record them as unknown.")
@click.option("--reason", default="", help="Why, for the log.")
@click.option("--yes", is_flag=True, help="Do not ask before more than one run is cancelled.")
@connected
async def cancel(client: Client, out: Output, run_id: str | None, **options: Unpack[CancelOptions]) -> Exit | None:
    """Cancel a run; no error when it has ended. Or all runs of a session, of an agent, or of the namespace.

    Runs that begin meanwhile are not cancelled: to keep new ones from beginning, `behest pause` first.
    """
    session, agent = options["session"], options["agent"]
    if sum(map(bool, (run_id, session or agent, options["everything"]))) != 1:
        raise click.UsageError("name a run, or give --session, --agent or --all")
    if run_id is not None:
        out.document(await client.runs.cancel(run_id, force=options["force"], reason=options["reason"]))
        return None
    states = (*_LIVE, _CANCELLING) if options["force"] else _LIVE
    request = run_service_pb2.ListRunsRequest(page_size=_PAGE, session_id=session, agent_id=agent, states=states)
    # All of them are read first: a cancelled run leaves the list that is being read.
    found = [run.id async for run in client.runs.list(request)]
    if found and not (options["yes"] or out.is_json):
        click.confirm(f"cancel {len(found)} runs?", abort=True, err=True)
    counts = await _cancelled(client, out, found, force=options["force"], reason=options["reason"])
    if out.is_json:
        out.line({"runs": len(found), "cancelled": counts["cancelled"], "failed": counts["failed"]})
    out.done(f"cancelled {counts['cancelled']} of {len(found)} runs")
    return Exit.FAILED if counts["failed"] else None


async def _cancelled(client: Client, out: Output, run_ids: list[str], *, force: bool, reason: str) -> Counter[str]:
    """Cancel runs, some at once, and count what came of it."""
    counts: Counter[str] = Counter()
    left = iter(run_ids)

    async def work() -> None:
        for run_id in left:
            try:
                await client.runs.cancel(run_id, force=force, reason=reason)
            except BehestError as error:
                counts["failed"] += 1
                out.note(f"{run_id}: {error}")
            else:
                counts["cancelled"] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(AT_ONCE, len(run_ids))):
            tasks.create_task(work())
    return counts
