"""`behest tools`: what models can call, what they have called, and what nobody knows the outcome of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected
from behest.cli.fields import enum_name
from behest.v1 import message_pb2, tool_call_pb2, tool_call_service_pb2, tool_pb2, tool_service_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("name", "policy.side_effect", "hints.side_effect", "server_id", "description")
CALL_COLUMNS = ("id", "tool_name", "state", "run_id", "step", "executed", "elapsed", "arguments_json")


@click.group()
def tools() -> None:
    """Show tools and their calls; settle unknown outcomes."""


@tools.command("list")
@click.option("--server", default="", help="Tools of this server.")
@click.option("--name", default="", metavar="GLOB", help="Tools of this name.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Most tools. Default: all.")
@connected
async def list_tools(client: Client, out: Output, server: str, name: str, limit: int) -> None:
    """List tools, with the class in force and the one that the author claims."""
    request = tool_service_pb2.ListToolsRequest(page_size=limit, server_id=server, name_glob=name)
    await out.listing(client.tools.list(request), COLUMNS, limit)


@tools.command()
@click.argument("name")
@connected
async def get(client: Client, out: Output, name: str) -> None:
    """Show a tool, with the policy in force."""
    out.document(await client.tools.get(name))


@tools.command()
@click.option("--run", "run_id", default="", help="Calls of this run.")
@click.option("--session", default="", help="Calls of this session.")
@click.option("--tool", default="", help="Calls of this tool.")
@click.option("--state", multiple=True, help="Calls in this state; may be repeated.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Most calls; 0 is all.")
@connected
async def calls(
    client: Client, out: Output, run_id: str, session: str, tool: str, state: tuple[str, ...], limit: int
) -> None:
    """List calls that runs have made, newest first."""
    names = [enum_name(tool_call_pb2.ToolCallState.DESCRIPTOR, each) for each in state]
    request = tool_call_service_pb2.ListToolCallsRequest(
        page_size=limit,
        run_id=run_id,
        session_id=session,
        tool_name=tool,
        states=[tool_call_pb2.ToolCallState.Value(name) for name in names],
    )
    await out.listing(client.tool_calls.list(request), CALL_COLUMNS, limit)


@tools.command()
@click.argument("call_id", metavar="CALL")
@click.option("--executed", type=click.Choice(["yes", "no", "unknown"]), required=True, help="Did it take effect?")
@click.option("--result", default=None, metavar="TEXT", help="What the model is told.")
@click.option("--error", "is_error", is_flag=True, help="The result says that the call failed.")
@click.option("--reason", default="", help="Why, for the audit.")
@connected
async def resolve(
    client: Client, out: Output, call_id: str, executed: str, result: str | None, is_error: bool, reason: str
) -> None:
    """Settle a call whose outcome is unknown. With no and no result it is sent again, with the same key."""
    told = None
    if result is not None:
        told = message_pb2.ToolResult(
            parts=[message_pb2.Part(text=message_pb2.TextPart(text=result))], is_error=is_error
        )
    value = tool_pb2.Executed.Value(enum_name(tool_pb2.Executed.DESCRIPTOR, executed))
    out.document(await client.tool_calls.resolve(call_id, value, result=told, reason=reason))
