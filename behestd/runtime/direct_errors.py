"""What a client is told of a direct call that failed: errors made of what executors raise. Used by `direct_calls`.

Reasons that speak of the daemon's own dealings with a tool's server (its credentials there, its drain) become
TOOL_UNAVAILABLE, so that no caller takes them for its own.
"""

from __future__ import annotations

import json

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed
from behestd import errors
from behestd.runtime.pauses import Switch, refusal
from behestd.tools.tool import Call, ToolFailure

_BRANCHES: dict[str, type[errors.BehestError]] = {
    "TOOL_NOT_FOUND": errors.NotFound,
    "TOOL_RESULT_INVALID": errors.Internal,
    "TOOL_RESULT_TOO_LARGE": errors.Exhausted,
    "TOOL_TIMEOUT": errors.TimedOut,
    "TOOL_UNAVAILABLE": errors.Unavailable,
    "TOOL_FAILED": errors.Internal,
    "TOOL_CHANGED": errors.WrongState,
    "TOOL_DENIED": errors.Forbidden,
    "TOOL_CANCELLED": errors.Cancelled,
    "TOOL_OUTCOME_UNKNOWN": errors.LostRace,
    "TOOL_START_EXPIRED": errors.WrongState,
}
_OF_THE_SERVER = ("AUTH_", "RUNTIME_", "STORAGE_", "TRANSPORT_")


def hold(switch: Switch, call: Call) -> None:
    """Stop a direct call that would be sent now. Raises ToolFailure, which names what is paused."""
    pause = switch.current.of_tool(call.namespace, call.name) if switch.current else None
    if pause is not None:
        permanent, no = FailureClass.FAILURE_CLASS_PERMANENT, Executed.EXECUTED_NO
        failure = ToolFailure(permanent, no, "RUNTIME_PAUSED", refusal(pause).message)
        failure.metadata["subject"] = pause.subject
        raise failure


def error_of(failure: ToolFailure, tool: str) -> errors.BehestError:
    """Tell a failure as the error of a call, with the proof that nothing was executed where there is one."""
    told = _error(failure, tool)
    told.not_executed = failure.executed == Executed.EXECUTED_NO
    return told


def _error(failure: ToolFailure, tool: str) -> errors.BehestError:
    if failure.reason == "TOOL_ARGUMENTS_INVALID":
        return arguments_refused(tool, failure.message)
    reason = failure.reason
    if reason == "RUNTIME_PAUSED" and "subject" in failure.metadata:  # Ours: a server's own names nothing.
        return errors.WrongState(reason, failure.message, subject=failure.metadata["subject"])
    if reason.startswith(_OF_THE_SERVER):
        reason = "TOOL_UNAVAILABLE"
    elif reason not in _BRANCHES:
        reason = "TOOL_FAILED"
    text = f"tool {tool}: {failure.message}"
    return _BRANCHES[reason](reason, text, retry_seconds=failure.retry_seconds, tool=tool)


def proved(error: errors.BehestError) -> errors.BehestError:
    """Say of an error that it proves that nothing was executed."""
    error.not_executed = True
    return error


def arguments_refused(tool: str, problem: str) -> errors.InvalidRequest:
    """Make the refusal of arguments out of what the validator says: a JSON document that lists what is wrong."""
    path, text = _first(problem)
    refusal = errors.InvalidRequest("arguments_json", f"{path or '/'}: {text}", reason="TOOL_ARGUMENTS_INVALID")
    refusal.metadata |= {"tool": tool, "path": path}
    return refusal


def _first(problem: str) -> tuple[str, str]:
    try:
        found = json.loads(problem)["errors"][0]
        return str(found["path"]), str(found["message"])
    except (ValueError, LookupError, TypeError):
        return "", problem or "they are no JSON object"
