"""Builds the order of a run from what a caller finds natural to write.

Above: `client` and the command line. Below: the messages of the contract. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypedDict

from google.protobuf.duration_pb2 import Duration

from behest.v1 import message_pb2, run_spec_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from behest.v1 import chat_pb2, definition_pb2, run_state_pb2

    Input: TypeAlias = str | message_pb2.Part | Iterable[str | message_pb2.Part]


class OrderFields(TypedDict, total=False):
    """The fields of RunSpec that a caller may set by name. What each means, set and unset, is said there."""

    session_id: str
    agent_id: str
    run_id: str
    model: str
    tools: Sequence[str]
    labels: Mapping[str, str]
    tool_choice: chat_pb2.ToolChoice
    sampling: chat_pb2.Sampling
    response_format: chat_pb2.ResponseFormat
    output_schema_json: str
    budgets: definition_pb2.Budgets
    timeout_seconds: float
    session_policy: run_state_pb2.SessionPolicy.ValueType
    cancel_on_disconnect: bool
    provider_options_json: str


def parts(said: Input) -> list[message_pb2.Part]:
    """Return parts of a message: a text alone, a part alone, or several of both."""
    if isinstance(said, str):
        return [message_pb2.Part(text=message_pb2.TextPart(text=said))]
    if isinstance(said, message_pb2.Part):
        return [said]
    return [part for each in said for part in parts(each)]


def run_spec(said: Input, fields: OrderFields) -> run_spec_pb2.RunSpec:
    """Return the order. Raises TypeError or ValueError when a field has the wrong type."""
    named = dict(fields)
    seconds = named.pop("timeout_seconds", None)
    spec = run_spec_pb2.RunSpec(input=parts(said), **named)  # type: ignore[arg-type]
    if isinstance(seconds, int | float):
        spec.timeout.CopyFrom(duration(seconds))
    return spec


def duration(seconds: float) -> Duration:
    """Return a duration, exact to the nanosecond of the float."""
    whole = int(seconds)
    return Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))
