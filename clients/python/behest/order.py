"""Builds the order of a run from what a caller finds natural to write.

Above: `client` and the command line. Below: the messages of the contract. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypedDict

from google.protobuf.duration_pb2 import Duration

from behest.v1 import graph_pb2, message_pb2, run_spec_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from behest.v1 import chat_pb2, definition_pb2, run_state_pb2, task_pb2

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
    graph_id: str
    graph_version: int
    graph: graph_pb2.Graph
    # By its name, with its parameters beside it.
    strategy: str
    strategy_parameters: Mapping[str, str | int]
    task: task_pb2.Task


def parts(said: Input) -> list[message_pb2.Part]:
    """Return parts of a message: a text alone, a part alone, or several of both."""
    if isinstance(said, str):
        return [message_pb2.Part(text=message_pb2.TextPart(text=said))]
    if isinstance(said, message_pb2.Part):
        return [said]
    return [part for each in said for part in parts(each)]


def run_spec(said: Input, fields: OrderFields) -> run_spec_pb2.RunSpec:
    """Return the order.

    Raises TypeError or ValueError when a field has the wrong type, and ValueError for parameters without a strategy.
    """
    named = dict(fields)
    seconds = named.pop("timeout_seconds", None)
    strategy, parameters = fields.get("strategy", ""), fields.get("strategy_parameters", {})
    named.pop("strategy", None)
    named.pop("strategy_parameters", None)
    if strategy:
        named["strategy"] = strategy_choice(strategy, parameters)
    elif parameters:
        raise ValueError("strategy_parameters are of no use without a strategy")
    spec = run_spec_pb2.RunSpec(input=parts(said), **named)  # type: ignore[arg-type]
    if isinstance(seconds, int | float):
        spec.timeout.CopyFrom(duration(seconds))
    return spec


def strategy_choice(name: str, parameters: Mapping[str, str | int]) -> graph_pb2.StrategyChoice:
    """Return a strategy with its parameters as the contract has them."""
    return graph_pb2.StrategyChoice(name=name, parameters={key: str(value) for key, value in parameters.items()})


def duration(seconds: float) -> Duration:
    """Return a duration, exact to the nanosecond of the float."""
    whole = int(seconds)
    return Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))
