"""The making of a run's definition: agent, request, tools and operator's rules, pinned into one message with a hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind, Sampling
from behest.v1.definition_pb2 import Limits, PermissionAction, PermissionRule, RunDefinition
from behest.v1.model_pb2 import Price
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.tool_pb2 import Tool
from behestd.core.limits import in_force


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the names in an agent and a request stand for at present. `prices` go with `models`, one each."""

    models: tuple[str, ...]
    prices: tuple[Price, ...]
    tools: tuple[Tool, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator's part of every definition."""

    permissions: Sequence[PermissionRule] = ()
    default_permission: PermissionAction.ValueType = PermissionAction.PERMISSION_ACTION_ASK
    limits: Limits = field(default_factory=Limits)
    """Of runs whose agent sets none; unset fields have their defaults."""


def define(agent: Agent, spec: RunSpec, resolved: Resolved, operator: Operator) -> RunDefinition:
    """Pin a run to everything that it depends on."""
    sampling = Sampling()
    sampling.MergeFrom(agent.sampling)
    sampling.MergeFrom(spec.sampling)
    if spec.sampling.stop:
        del sampling.stop[:]
        sampling.stop.extend(spec.sampling.stop)
    definition = RunDefinition(
        agent_id=agent.id,
        agent_version=agent.version,
        instructions=agent.instructions,
        models=resolved.models,
        prices=resolved.prices,
        tools=resolved.tools,
        sampling=sampling,
        operator_permissions=operator.permissions,
        agent_permissions=agent.permissions,
        limits=in_force(agent.limits, operator.limits),
        context_sources=agent.context_sources,
        provider_options_json=spec.provider_options_json or agent.provider_options_json,
        default_permission=operator.default_permission,
    )
    choice = spec.tool_choice if spec.HasField("tool_choice") else agent.tool_choice
    if choice.mode:
        definition.tool_choice.CopyFrom(choice)
    answer = spec.response_format if spec.HasField("response_format") else agent.response_format
    if spec.output_schema_json:
        kind = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA
        answer = ResponseFormat(kind=kind, schema_json=spec.output_schema_json, strict=True)
    if answer.kind:
        definition.response_format.CopyFrom(answer)
    return definition


def name(definition: RunDefinition) -> tuple[bytes, bytes]:
    """The definition's hash and bytes."""
    data = definition.SerializeToString(deterministic=True)
    return sha256(data).digest(), data
