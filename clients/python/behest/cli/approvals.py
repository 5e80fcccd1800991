"""`behest approvals`: the tool calls that wait for somebody's word, and the words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected
from behest.cli.fields import enum_name
from behest.v1 import approval_pb2, approval_service_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("call_id", "tool_name", "state", "decision", "decided_by", "run_id", "until", "arguments_json", "reason")


@click.group()
def approvals() -> None:
    """Decide about tool calls that wait for a word."""


@approvals.command("list")
@click.option("--run", "run_id", default="", help="Of this run.")
@click.option("--session", default="", help="Of this session.")
@click.option("--agent", default="", help="Of runs of this agent.")
@click.option("--state", multiple=True, help="In this state, or all; may be repeated. Default: pending.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Most approvals; 0 is all.")
@connected
async def list_approvals(
    client: Client, out: Output, run_id: str, session: str, agent: str, state: tuple[str, ...], limit: int
) -> None:
    """List approvals, oldest first: those that wait, or the record of who decided what, when and why."""
    request = approval_service_pb2.ListApprovalsRequest(
        page_size=limit, run_id=run_id, session_id=session, agent_id=agent, states=_states(state)
    )
    await out.listing(client.approvals.list(request), COLUMNS, limit)


def _states(given: tuple[str, ...]) -> list[approval_pb2.ApprovalState.ValueType]:
    if "all" in given:
        return [state for state in approval_pb2.ApprovalState.values() if state]
    names = [enum_name(approval_pb2.ApprovalState.DESCRIPTOR, each) for each in given]
    return [approval_pb2.ApprovalState.Value(name) for name in names]


@approvals.command()
@click.argument("call_id", metavar="CALL")
@connected
async def show(client: Client, out: Output, call_id: str) -> None:
    """Show an approval, with the arguments that are asked for."""
    out.document(await client.approvals.get(call_id))


@approvals.command()
@click.argument("call_id", metavar="CALL")
@click.option("--reason", default="", help="Why, for the audit.")
@click.option("--arguments", default="", metavar="JSON", help="Send these instead; they are checked again.")
@click.option("--hash", "args_hash", default="", metavar="HEX", help="Only if the arguments have this SHA-256.")
@connected
async def approve(client: Client, out: Output, call_id: str, reason: str, arguments: str, args_hash: str) -> None:
    """Let a call go ahead."""
    approval = await client.approvals.get(call_id)
    if args_hash and args_hash.lower() != approval.args_hash.hex():
        raise click.ClickException(f"the arguments of {call_id} have the SHA-256 {approval.args_hash.hex()}")
    out.document(await client.approvals.approve(approval, reason=reason, arguments_json=arguments))


@approvals.command()
@click.argument("call_id", metavar="CALL")
@click.option("--reason", default="", help="Why; the model is told.")
@connected
async def deny(client: Client, out: Output, call_id: str, reason: str) -> None:
    """Refuse a call."""
    out.document(await client.approvals.deny(call_id, reason=reason))
