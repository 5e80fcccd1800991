"""The tool `run`: an order to an agent, given over MCP, and the result of its run.

Above: `serving`. Below: the client. Guarantees: the run that is told of is the one that was ordered, also over a
restart of the daemon; each event of it is progress; a call that is cancelled cancels its run.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import anyio
from mcp import types

from behest.client import Client
from behest.errors import BehestError, RunEndedError
from behest.order import OrderFields
from behest.runs import RunHandle
from behest.v1.chat_pb2 import FinishReason
from behest.v1.event_pb2 import Event

CANCEL_SECONDS = 5.0
_DESCRIPTION = (
    "Give an order to an agent of this behestd, and wait for its answer. The run is durable: it is known by the run_id "
    "in the result, and goes on where it was when the daemon restarts."
)
_FIELDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string", "minLength": 1, "description": "the order"},
    "session_id": {"type": "string", "description": "conversation to go on with; default: a new one"},
    "agent_id": {"type": "string", "description": "who carries it out; default: the default agent"},
    "model": {"type": "string", "description": "model, as provider/name; default: the agent's"},
    "timeout_seconds": {"type": "number", "exclusiveMinimum": 0, "description": "how long the run may take"},
}

Report = Callable[[float, str], Awaitable[None]]
"""Shows progress: how far, in a number that grows, and a text."""


class OrderInvalid(Exception):
    """Raised when the arguments are no order. The text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Orders:
    """Gives orders. An `agent_id` binds them to that agent, and an empty one lets the caller name it."""

    client: Client
    name: str = "run"
    agent_id: str = ""

    @property
    def tool(self) -> types.Tool:
        """The tool as it is listed."""
        fields = {name: field for name, field in _FIELDS.items() if name != "agent_id" or not self.agent_id}
        schema = {"type": "object", "properties": fields, "required": ["text"], "additionalProperties": False}
        result = {"type": "object", "properties": {"run_id": {"type": "string"}}, "required": ["run_id"]}
        return types.Tool(name=self.name, description=_DESCRIPTION, input_schema=schema, output_schema=result)

    async def carry_out(
        self, arguments: dict[str, Any], report: Report, *, request_id: str = ""
    ) -> types.CallToolResult:
        """Order a run, show its events, and return its result. Raises OrderInvalid, BehestError when it is refused.

        The same `request_id` is the same run, however often it is ordered.
        """
        text, order = self._order(arguments)
        run = self.client.stream(text, request_id=request_id, **order)
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    await report(event.sequence, shown(event))
            output = await run.result()
        except RunEndedError as exc:
            told = {"run_id": run.run_id, "error": exc.reason}
            return types.CallToolResult(content=[_text(str(exc)[:2_000])], structured_content=told, is_error=True)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), anyio.move_on_after(CANCEL_SECONDS):
                await _cancelled(run)
            raise
        answer = {"run_id": run.run_id, "text": output.text, "finish_reason": FinishReason.Name(output.finish_reason)}
        if output.json:
            answer["json"] = json.loads(output.json)
        return types.CallToolResult(content=[_text(output.text)], structured_content=answer)

    def _order(self, arguments: dict[str, Any]) -> tuple[str, OrderFields]:
        known = self.tool.input_schema["properties"]
        if unknown := sorted(set(arguments) - set(known)):
            raise OrderInvalid(f"there is no argument {unknown[0][:64]!r}")
        values = {name: value for name, value in arguments.items() if value is not None}
        text, seconds = values.pop("text", ""), values.pop("timeout_seconds", None)
        if not isinstance(text, str) or not text:
            raise OrderInvalid("text is required")
        order: OrderFields = {"agent_id": self.agent_id} if self.agent_id else {}
        for name in ("session_id", "agent_id", "model"):
            if name in values:
                if not isinstance(values[name], str):
                    raise OrderInvalid(f"{name} is no string")
                order[name] = values[name]
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
                raise OrderInvalid("timeout_seconds is no number above 0")
            order["timeout_seconds"] = seconds
        return text, order


def shown(event: Event) -> str:
    """An event in a few words: what happened, and in which step."""
    kind = event.WhichOneof("payload") or "event"
    step = getattr(getattr(event, kind, None), "step", 0)
    return kind.replace("_", " ") + (f", step {step}" if step else "")


async def _cancelled(run: RunHandle) -> None:
    # One that cannot be cancelled now is still the daemon's, and ends by its own limits.
    with suppress(BehestError):
        await run.cancel(reason="the MCP call was cancelled")


def _text(text: str) -> types.TextContent:
    return types.TextContent(text=text)
