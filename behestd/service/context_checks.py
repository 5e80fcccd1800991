"""Checks of ContextService's requests, each refusal naming its field."""

from __future__ import annotations

from behest.v1 import context_service_pb2 as pb
from behest.v1.message_pb2 import Role
from behestd.service import run_checks
from behestd.service.validate import (
    identifier,
    known,
    max_bytes,
    max_items,
    not_negative,
    required,
    required_message,
    timestamp_ns,
)

_MAX_NAME_BYTES = 129
_MAX_MESSAGES = 10_000


def check_build(request: pb.BuildContextRequest) -> None:
    """Check a request for a preview."""
    required_message(request, "spec")
    run_checks.check_spec(request.spec)
    run_checks.check_parts("spec.input", request.spec.input)


def check_question(request: pb.ProvideContextRequest) -> int:
    """Check a question, and return its deadline in unix nanoseconds, 0 for none."""
    required("source", request.source)
    max_bytes("source", request.source, _MAX_NAME_BYTES)
    for field in ("run_id", "session_id", "agent_id"):
        if getattr(request, field):
            identifier(field, getattr(request, field))
    not_negative("step", request.step)
    not_negative("max_tokens", request.max_tokens)
    max_items("messages", request.messages, _MAX_MESSAGES)
    for index, message in enumerate(request.messages):
        known(f"messages[{index}].role", message.role, Role.DESCRIPTOR)
    return timestamp_ns("deadline", request.deadline) if request.HasField("deadline") else 0
