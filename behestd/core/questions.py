"""Questions of a run to its user: calls of the built-in tool `ask_user`, which nobody executes. Used by the core.

Such a call is started like any other, so that the log shows when the question was put; its result is the next input of
the run, and until then the run has it open, waiting when nothing else is going on.
"""

from __future__ import annotations

from behest.v1.message_pb2 import Message, ToolResult
from behestd.core.state import Call, Phase, Run

ASK_USER = "ask_user"
"""The name of the tool. It is reserved: no server and no extension may offer it."""


def is_question(call: Call) -> bool:
    """Whether a call is one of `ask_user`."""
    return call.tool is not None and call.tool.name == ASK_USER and not call.tool.server_id


def is_open(call: Call) -> bool:
    """Whether a call is a question that was put and has no answer."""
    return call.phase is Phase.STARTED and is_question(call)


def oldest(run: Run) -> Call | None:
    """The question that the next input answers, None when none is open."""
    return next((call for call in run.calls if is_open(call)), None)


def answer(call: Call, message: Message) -> ToolResult:
    """The result of a question: what was said."""
    return ToolResult(call_id=call.call.id, name=call.call.name, parts=message.parts)
