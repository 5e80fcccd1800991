"""Checks of AgentService's requests, every field of a definition among them, and the errors that only they raise."""

from __future__ import annotations

import re
from collections.abc import Sequence

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import DoomLoopAction, Limits, PermissionAction, PermissionRule
from behest.v1.graph_pb2 import StrategyChoice
from behestd.context.catalog import Sources
from behestd.context.source import SourceNotFound
from behestd.core.sources import MAX_SOURCES
from behestd.errors import AlreadyExists, InvalidRequest, LostRace, NotFound, StrategyNotFound, WrongState
from behestd.providers.catalog import Snapshot
from behestd.runtime.graph_order import made
from behestd.service.chat_checks import MAX_NAME_BYTES, check_response_format, check_sampling, check_tool_choice
from behestd.service.compaction_checks import check_compaction
from behestd.service.graph_checks import check_choice
from behestd.service.validate import (
    duration,
    identifier,
    json_object,
    known,
    labels,
    max_bytes,
    max_items,
    required,
)
from behestd.tools.subagent import MAX_ID

OUTPUT_ONLY = frozenset({"id", "version", "create_time", "update_time"})
CHANGEABLE = frozenset(field.name for field in Agent.DESCRIPTOR.fields) - OUTPUT_ONLY
_MAX_DISPLAY_NAME = 128
_MAX_DESCRIPTION_BYTES = 4 * 1024
_MAX_INSTRUCTIONS_BYTES = 256 * 1024
_MAX_FALLBACKS = 8
_MAX_TOOLS = 256
_MAX_SUB_AGENTS = 64
_MAX_RULES = 256
_MAX_ARGUMENTS = 32
_MAX_PATTERN_BYTES = 1024
_MAX_OPTIONS_BYTES = 64 * 1024
_PATTERN = re.compile(r"[A-Za-z0-9_*?\[\]!-]{1,64}")
_AT_LEAST_ONE = (
    "max_steps",
    "max_parallel_tool_calls",
    "tool_output_lines",
    "tool_output_bytes",
    "max_events",
    "max_log_bytes",
    "max_parallel_children",
)


class AgentIdTaken(AlreadyExists):
    """Raised when the chosen id of an agent exists."""

    def __init__(self, agent_id: str) -> None:
        super().__init__("AGENT_ID_TAKEN", f"agent id {agent_id} is taken", agentId=agent_id)


class AgentVersionMismatch(LostRace):
    """Raised when an agent is not at the version expected."""

    def __init__(self, version: int) -> None:
        super().__init__("AGENT_VERSION_MISMATCH", f"the agent is at version {version}", version=version)


class AgentInUse(WrongState):
    """Raised when the default agent, or the one that is built in, is to be deleted."""

    def __init__(self, agent_id: str) -> None:
        super().__init__("AGENT_IN_USE", f"agent {agent_id} cannot be deleted", agentId=agent_id)


def check_agent(agent: Agent, models: Snapshot, sources: Sources) -> None:
    """Check a definition but for its output-only fields.

    What it names must be there, but for tools and agents: they may come.
    """
    if len(agent.display_name) > _MAX_DISPLAY_NAME:
        problem = f"has {len(agent.display_name)} characters, at most {_MAX_DISPLAY_NAME} are allowed"
        raise InvalidRequest("agent.display_name", problem)
    max_bytes("agent.description", agent.description, _MAX_DESCRIPTION_BYTES)
    max_bytes("agent.instructions", agent.instructions, _MAX_INSTRUCTIONS_BYTES)
    labels("agent.labels", agent.labels)
    _check_models(agent, models)
    max_items("agent.tools", agent.tools, _MAX_TOOLS)
    for index, pattern in enumerate(agent.tools):
        _check_pattern(f"agent.tools[{index}]", pattern)
    max_items("agent.sub_agents", agent.sub_agents, _MAX_SUB_AGENTS)
    for index, agent_id in enumerate(agent.sub_agents):
        _check_sub_agent(f"agent.sub_agents[{index}]", agent_id)
    max_items("agent.permissions", agent.permissions, _MAX_RULES)
    for index, rule in enumerate(agent.permissions):
        _check_rule(f"agent.permissions[{index}]", rule)
    _check_limits(agent.limits)
    check_compaction(agent, models)
    check_sampling("agent.sampling", agent.sampling)
    check_tool_choice("agent.tool_choice", agent.tool_choice)
    check_response_format("agent.response_format", agent.response_format)
    if agent.provider_options_json:
        json_object("agent.provider_options_json", agent.provider_options_json, _MAX_OPTIONS_BYTES)
    _check_sources(agent.context_sources, sources)
    _check_followed(agent)


def check_expected(version: int | None, present: int) -> None:
    """Refuse a version that is not the present one. Raises AgentVersionMismatch."""
    if version not in (None, present):
        raise AgentVersionMismatch(present)


def _check_models(agent: Agent, models: Snapshot) -> None:
    max_items("agent.fallback_models", agent.fallback_models, _MAX_FALLBACKS)
    named = [(f"agent.fallback_models[{index}]", model) for index, model in enumerate(agent.fallback_models)]
    for field, model in named:
        required(field, model)
    for field, model in [("agent.model", agent.model), *named]:
        max_bytes(field, model, MAX_NAME_BYTES)
        try:
            models.resolve(model)
        except NotFound as error:
            if model:
                raise InvalidRequest(field, error.message) from None


def _check_pattern(field: str, pattern: str) -> None:
    if not _PATTERN.fullmatch(pattern):
        raise InvalidRequest(field, "must be the name of a tool or a glob, 1 to 64 of A-Z a-z 0-9 _ - * ? [ ] !")


def _check_sub_agent(field: str, agent_id: str) -> None:
    identifier(field, agent_id)
    if len(agent_id) > MAX_ID:
        raise InvalidRequest(field, f"has {len(agent_id)} characters, at most {MAX_ID} are allowed")


def _check_rule(field: str, rule: PermissionRule) -> None:
    required(f"{field}.tool", rule.tool)
    _check_pattern(f"{field}.tool", rule.tool)
    known(f"{field}.action", rule.action, PermissionAction.DESCRIPTOR)
    max_items(f"{field}.arguments", rule.arguments, _MAX_ARGUMENTS)
    for name, pattern in rule.arguments.items():
        max_bytes(f"{field}.arguments", name, MAX_NAME_BYTES)
        max_bytes(f"{field}.arguments", pattern, _MAX_PATTERN_BYTES)
    max_bytes(f"{field}.reason", rule.reason, _MAX_PATTERN_BYTES)


def _check_limits(limits: Limits) -> None:
    for field, value in limits.ListFields():
        if isinstance(value, int) and value < (1 if field.name in _AT_LEAST_ONE else 0):
            raise InvalidRequest(f"agent.limits.{field.name}", f"{value} is below {int(field.name in _AT_LEAST_ONE)}")
    if limits.HasField("timeout") and duration("agent.limits.timeout", limits.timeout) <= 0:
        raise InvalidRequest("agent.limits.timeout", "must be longer than 0 s")
    loop = limits.doom_loop
    known("agent.limits.doom_loop.action", loop.action, DoomLoopAction.DESCRIPTOR, may_be_unset=True)
    if loop.HasField("repeats") and loop.repeats < 2:
        raise InvalidRequest("agent.limits.doom_loop.repeats", f"{loop.repeats} is below 2")
    if loop.HasField("warnings") and loop.warnings < 0:
        raise InvalidRequest("agent.limits.doom_loop.warnings", f"{loop.warnings} is below 0")


def _check_sources(names: Sequence[str], sources: Sources) -> None:
    max_items("agent.context_sources", names, MAX_SOURCES)
    for index, source in enumerate(names):
        try:
            sources.find(source)
        except SourceNotFound:
            problem = f"{source[:64]!r} is not known to this daemon"
            raise InvalidRequest(f"agent.context_sources[{index}]", problem) from None
        if source in names[:index]:
            raise InvalidRequest(f"agent.context_sources[{index}]", f"{source!r} comes twice")


def _check_followed(agent: Agent) -> None:
    """Check what runs follow; whether there is a graph of that id is found out where it is looked up."""
    if agent.graph_id:
        identifier("agent.graph_id", agent.graph_id)
    if agent.graph_id and agent.strategy:
        raise InvalidRequest("agent.strategy", "and graph_id exclude each other")
    if agent.strategy_parameters and not agent.strategy:
        raise InvalidRequest("agent.strategy_parameters", "are of a strategy, and there is none")
    if agent.strategy:
        choice = StrategyChoice(name=agent.strategy, parameters=agent.strategy_parameters)
        check_choice("agent.strategy", choice)
        try:
            made(choice, "agent.strategy_parameters")
        except StrategyNotFound as error:
            raise InvalidRequest("agent.strategy", error.message) from None


def check_id(field: str, agent_id: str) -> None:
    """Refuse what is no id of an agent."""
    identifier(field, agent_id)
