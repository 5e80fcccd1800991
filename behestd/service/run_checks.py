"""Checks of RunService's requests, each refusal naming its field. Nothing is recorded of a request that is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from behest.v1 import run_service_pb2 as pb
from behest.v1.definition_pb2 import Budgets
from behest.v1.message_pb2 import Part
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import CancelMode, RunState, SessionPolicy
from behestd.errors import InvalidRequest
from behestd.service.chat_checks import (
    MAX_NAME_BYTES,
    MAX_PARTS,
    MAX_SCHEMA_BYTES,
    MAX_TOOLS,
    check_json,
    check_response_format,
    check_sampling,
    check_tool_choice,
)
from behestd.service.graph_checks import check_followed
from behestd.service.validate import (
    duration,
    identifier,
    json_object,
    known,
    labels,
    max_bytes,
    max_items,
    not_negative,
    one_of,
    request_id,
    required,
    required_message,
)

Creation = pb.CreateRunRequest | pb.StreamRunRequest | pb.ForkRunRequest

_MAX_REASON_BYTES = 1024


def check_creation(request: Creation, spec: RunSpec) -> None:
    """Check a request for a new run; `spec` is what it comes to."""
    if not isinstance(request, pb.ForkRunRequest):
        required_message(request, "spec")
    request_id("request_id", request.request_id)
    check_spec(spec)


def check_spec(spec: RunSpec) -> None:
    """Check what a run is to be, but for its input. What is not said is not looked at, and is allowed."""
    said = {field.name: value for field, value in spec.ListFields()}
    for field, value in said.items():
        if (check := _CHECKS.get(field)) is not None:
            check(f"spec.{field}", value)
    if not _FOLLOWED.isdisjoint(said):
        check_followed(spec)


def check_parts(field: str, parts: Sequence[Part]) -> None:
    """Check what somebody says: each part of a kind that people send, with its content."""
    max_items(field, parts, MAX_PARTS)
    for index, part in enumerate(parts):
        if part.WhichOneof("kind") == "text":
            continue
        path = f"{field}[{index}]"
        kind = one_of(part, "kind", path)
        if kind in ("tool_call", "tool_result", "reasoning"):
            raise InvalidRequest(f"{path}.{kind}", "is said by models and tools only")
        if kind == "json":
            check_json(path, part)
        if kind in ("image", "audio", "file"):
            source = getattr(part, kind)
            chosen = one_of(source, "source", f"{path}.{kind}")
            if chosen == "data":
                required(f"{path}.image.media_type", part.image.media_type)
                max_bytes(f"{path}.image.data", part.image.data, 256 * 1024)


def _check_policy(field: str, policy: int) -> None:
    known(field, policy, SessionPolicy.DESCRIPTOR)


def _check_model(field: str, model: str) -> None:
    max_bytes(field, model, MAX_NAME_BYTES)


def _check_tools(field: str, tools: Sequence[str]) -> None:
    max_items(field, tools, MAX_TOOLS)
    for index, tool in enumerate(tools):
        max_bytes(f"{field}[{index}]", tool, MAX_NAME_BYTES)
        required(f"{field}[{index}]", tool)


def _check_timeout(field: str, timeout: Duration) -> None:
    if duration(field, timeout) <= 0:
        raise InvalidRequest(field, "must be longer than 0 s")


def _check_schema(field: str, text: str) -> None:
    json_object(field, text, MAX_SCHEMA_BYTES)


def _check_budgets(path: str, budgets: Budgets) -> None:
    for field, value in budgets.ListFields():
        not_negative(f"{path}.{field.name}", value)
    if budgets.HasField("max_steps") and budgets.max_steps < 1:
        raise InvalidRequest(f"{path}.max_steps", "must be at least 1")


_CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    "session_id": identifier,
    "agent_id": identifier,
    "model": _check_model,
    "tools": _check_tools,
    "tool_choice": check_tool_choice,
    "sampling": check_sampling,
    "response_format": check_response_format,
    "output_schema_json": _check_schema,
    "budgets": _check_budgets,
    "timeout": _check_timeout,
    "session_policy": _check_policy,
    "labels": labels,
    "run_id": identifier,
    "provider_options_json": _check_schema,
}
"""The checks of the fields of a spec, each by itself."""
_FOLLOWED = frozenset({"graph_id", "graph_version", "graph", "strategy"})


def check_fork(request: pb.ForkRunRequest) -> None:
    """Check where a run is forked."""
    not_negative("visit", request.visit)
    if request.visit and request.sequence:
        raise InvalidRequest("visit", "and sequence exclude each other")


def check_filters(request: pb.ListRunsRequest) -> None:
    """Check the filters of a list of runs."""
    for index, state in enumerate(request.states):
        known(f"states[{index}]", state, RunState.DESCRIPTOR)
    for field in ("session_id", "agent_id"):
        if getattr(request, field):
            identifier(field, getattr(request, field))
    labels("labels", request.labels)


def check_cancel(request: pb.CancelRunRequest) -> None:
    """Check a cancellation."""
    known("mode", request.mode, CancelMode.DESCRIPTOR, may_be_unset=True)
    max_bytes("reason", request.reason, _MAX_REASON_BYTES)
