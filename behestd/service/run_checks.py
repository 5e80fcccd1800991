"""Checks of RunService's requests, each refusal naming its field. Nothing is recorded of a request that is refused."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Check what a run is to be, but for its input."""
    for field in ("session_id", "run_id", "agent_id"):
        if getattr(spec, field):
            identifier(f"spec.{field}", getattr(spec, field))
    known("spec.session_policy", spec.session_policy, SessionPolicy.DESCRIPTOR, may_be_unset=True)
    labels("spec.labels", spec.labels)
    max_bytes("spec.model", spec.model, MAX_NAME_BYTES)
    max_items("spec.tools", spec.tools, MAX_TOOLS)
    for index, tool in enumerate(spec.tools):
        max_bytes(f"spec.tools[{index}]", tool, MAX_NAME_BYTES)
        required(f"spec.tools[{index}]", tool)
    if spec.HasField("timeout") and duration("spec.timeout", spec.timeout) <= 0:
        raise InvalidRequest("spec.timeout", "must be longer than 0 s")
    _check_answer(spec)
    check_followed(spec)
    if spec.HasField("budgets"):
        _check_budgets(spec.budgets)


def check_parts(field: str, parts: Sequence[Part]) -> None:
    """Check what somebody says: each part of a kind that people send, with its content."""
    max_items(field, parts, MAX_PARTS)
    for index, part in enumerate(parts):
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


def _check_answer(spec: RunSpec) -> None:
    if spec.provider_options_json:
        json_object("spec.provider_options_json", spec.provider_options_json, MAX_SCHEMA_BYTES)
    if spec.output_schema_json:
        json_object("spec.output_schema_json", spec.output_schema_json, MAX_SCHEMA_BYTES)
    if spec.HasField("sampling"):
        check_sampling("spec.sampling", spec.sampling)
    if spec.HasField("tool_choice"):
        check_tool_choice("spec.tool_choice", spec.tool_choice)
    if spec.HasField("response_format"):
        check_response_format("spec.response_format", spec.response_format)


def _check_budgets(budgets: Budgets) -> None:
    for field, value in budgets.ListFields():
        not_negative(f"spec.budgets.{field.name}", value)
    if budgets.HasField("max_steps") and budgets.max_steps < 1:
        raise InvalidRequest("spec.budgets.max_steps", "must be at least 1")


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
