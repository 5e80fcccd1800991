"""The making of a run's definition: agent, request, tools and operator's rules, pinned into one message with a hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind, Sampling
from behest.v1.context_pb2 import ContextSource
from behest.v1.definition_pb2 import (
    Compaction,
    Limits,
    PermissionAction,
    PermissionRule,
    PermissionScope,
    Pruning,
    RunDefinition,
    ToolScope,
)
from behest.v1.graph_pb2 import Termination
from behest.v1.model_pb2 import ModelLimits, Price
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.tool_pb2 import Tool
from behestd.core.limits import WAIT_SECONDS, in_force, of_child
from behestd.core.times import duration, duration_ns

GRAPH_STEPS = 10_000
"""The most steps of a run of a graph, where neither its agent nor its request says so: the graph bounds it."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the names in an agent and a request stand for at present. `prices` go with `models`, one each."""

    models: tuple[str, ...]
    prices: tuple[Price, ...]
    tools: tuple[Tool, ...]
    limits: tuple[ModelLimits, ...] = ()
    """What fits into `models`, one each."""
    sources: tuple[ContextSource, ...] = ()
    """Context sources, in the order in which they stand."""


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator's part of every definition."""

    permissions: Sequence[PermissionRule] = ()
    default_permission: PermissionAction.ValueType = PermissionAction.PERMISSION_ACTION_ASK
    approval_seconds: float = WAIT_SECONDS
    """How long a call waits for an approval before it counts as refused."""
    own_approvals: bool = False
    """Whether whoever ordered a run may decide about its calls outside local mode too."""
    limits: Limits = field(default_factory=Limits)
    """Of runs whose agent sets none; unset fields have their defaults."""
    compaction: Compaction = field(default_factory=Compaction)
    """How conversations are summarised; unset fields have their defaults."""
    pruning: Pruning = field(default_factory=Pruning)
    """Which outputs of tools are left out; unset fields have their defaults."""


@dataclass(frozen=True, slots=True)
class Heritage:
    """What a run must keep to beside its agent and its request: scopes of tools, and the run that starts it."""

    scopes: tuple[tuple[str, ...], ...] = ()
    """Names and globs of tools; a tool must be in each scope."""
    parent: RunDefinition | None = None


FREE = Heritage()
"""That of a run that nobody limits."""


def define(
    agent: Agent, spec: RunSpec, resolved: Resolved, operator: Operator, heritage: Heritage = FREE
) -> RunDefinition:
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
        limits=limits_of(agent, operator, heritage),
        context_sources=agent.context_sources,
        sources=resolved.sources,
        model_limits=resolved.limits,
        provider_options_json=spec.provider_options_json or agent.provider_options_json,
        default_permission=operator.default_permission,
        approval_timeout=duration(operator.approval_seconds),
        tool_scopes=[ToolScope(tools=scope) for scope in heritage.scopes],
        inherited_permissions=_inherited(heritage.parent) if heritage.parent is not None else None,
    )
    choice = spec.tool_choice if spec.HasField("tool_choice") else agent.tool_choice
    if choice.mode:
        definition.tool_choice.CopyFrom(choice)
    answer = answer_of(agent, spec)
    if answer.kind:
        definition.response_format.CopyFrom(answer)
    return definition


def answer_of(agent: Agent, spec: RunSpec) -> ResponseFormat:
    """The form of the answer: that of the request, or else the agent's."""
    answer = spec.response_format if spec.HasField("response_format") else agent.response_format
    if not spec.output_schema_json:
        return answer
    kind, schema = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA, spec.output_schema_json
    return ResponseFormat(kind=kind, schema_json=schema, strict=True, emulate=answer.emulate)


def limits_of(agent: Agent, operator: Operator, heritage: Heritage) -> Limits:
    """The limits of a run of an agent: never more levels and child runs than the run above it has."""
    limits = in_force(agent.limits, operator.limits)
    return limits if heritage.parent is None else of_child(limits, heritage.parent.limits)


def limits_of_graph(agent: Agent, limits: Limits, end: Termination) -> Limits:
    """The limits of a run that follows a graph: those in force for its agent, lowered to what ends the graph."""
    lowered = Limits()
    lowered.CopyFrom(limits)
    if not agent.limits.HasField("max_steps"):
        lowered.max_steps = GRAPH_STEPS
    if end.HasField("max_total_tokens"):
        lowered.max_total_tokens = _lower(limits, "max_total_tokens", end.max_total_tokens)
    if end.HasField("max_cost_micro_usd"):
        lowered.max_cost_micro_usd = _lower(limits, "max_cost_micro_usd", end.max_cost_micro_usd)
    if end.HasField("timeout") and duration_ns(end.timeout) < duration_ns(limits.timeout):
        lowered.timeout.CopyFrom(end.timeout)
    return lowered


def _lower(limits: Limits, name: Literal["max_total_tokens", "max_cost_micro_usd"], value: int) -> int:
    return min(getattr(limits, name), value) if limits.HasField(name) else value


def _inherited(parent: RunDefinition) -> list[PermissionScope]:
    """What the calls of a child run are judged by beside its own rules: those of its parent, and of all above it."""
    own = PermissionScope(
        operator_permissions=parent.operator_permissions,
        agent_permissions=parent.agent_permissions,
        default_permission=parent.default_permission,
    )
    return [*parent.inherited_permissions, own]


def name(definition: RunDefinition) -> tuple[bytes, bytes]:
    """The definition's hash and bytes."""
    data = definition.SerializeToString(deterministic=True)
    return sha256(data).digest(), data
