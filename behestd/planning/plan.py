"""Turns settings into the plan of a daemon: its parts, policies, rules and limits.

Above: `cli` and the daemon's reload. Below: the other modules of this package. What makes no sense in the house, such
as a default model that nobody serves, is ConfigInvalid, with the key and the source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from behest.v1.definition_pb2 import DoomLoop, DoomLoopAction, PermissionAction, PermissionRule
from behest.v1.definition_pb2 import Limits as RunLimits
from behestd.config import settings as config
from behestd.config.settings import Settings
from behestd.config.source import Configuration
from behestd.core.definition import Operator
from behestd.core.times import duration
from behestd.plan import Plan
from behestd.planning import auth, budgets, context, models, quotas, retention, telemetry, tools
from behestd.providers.provider import Provider, ProviderTimeouts
from behestd.runtime.admission import Rules
from behestd.runtime.house import Limits
from behestd.secret import parse
from behestd.service.settings import Keepalive
from behestd.service.settings import Settings as Edge
from behestd.tools.schema import SchemaLimits

_OF_SCHEMAS = ("schema_bytes", "schema_depth", "schema_nodes")


def plan(configuration: Configuration, kept: Mapping[str, Provider] | None = None) -> Plan:
    """Make the plan of a daemon; `kept` are providers that are taken over as they are.

    Raises ConfigInvalid, and Unsupported when an extra is not installed.
    """
    settings, vault = configuration.settings, configuration.vault
    found = context.sources(settings.context)
    return Plan(
        models=models.models(configuration, kept),
        tools=partial(tools.tools, configuration, found),
        tool_policies=tools.tool_policies(settings.tools.policies),
        sources=found,
        data_dir=None if settings.storage.kind == "memory" else Path(settings.storage.data_dir),
        addresses=settings.server.addresses,
        limits=limits(settings),
        schemas=SchemaLimits(*(getattr(settings.limits, name) for name in _OF_SCHEMAS)),
        operator=operator(settings),
        rules=admission(settings),
        retries=models.retries(settings),
        circuits=models.circuits(settings),
        model_limits=models.model_limits(settings),
        budgets=budgets.rules(settings.budgets),
        retention=retention.rules(settings.retention),
        quotas=quotas.rules(settings.quotas, settings.server.watches, is_local=auth.is_local(settings)),
        overload=quotas.load(settings.overload),
        model_timeouts=ProviderTimeouts(**settings.models.timeouts.model_dump()),
        edge=edge(settings.server),
        credentials=auth.credentials(configuration),
        tls=auth.tls(configuration),
        has_reflection=settings.server.reflection,
        telemetry=telemetry.settings(configuration),
        servers=tools.tool_servers(configuration),
        endpoints=tools.endpoints(settings),
        fallbacks=settings.models.fallbacks,
        secrets=lambda reference: vault.read(parse(reference)).reveal(),
        heartbeat_seconds=settings.server.heartbeat_seconds,
        drain_seconds=settings.limits.drain_seconds,
    )


def operator(settings: Settings) -> Operator:
    """Make the operator's part of every definition."""
    permissions = settings.permissions
    otherwise = "allow" if auth.is_local(settings) else "ask"
    default = otherwise if permissions.default == "auto" else permissions.default
    return Operator(
        permissions=[
            PermissionRule(tool=rule.tool, arguments=rule.arguments, action=_action(rule.action), reason=rule.reason)
            for rule in permissions.rules
        ],
        default_permission=_action(default),
        approval_seconds=permissions.approval_seconds,
        own_approvals=permissions.own_approvals,
        limits=_run_limits(settings.limits.run),
        compaction=settings.compaction.policy(),
        pruning=settings.pruning.policy(),
    )


def _action(name: str) -> PermissionAction.ValueType:
    return PermissionAction.Value(f"PERMISSION_ACTION_{name.upper()}")


def limits(settings: Settings) -> Limits:
    """Make the limits of the runtime."""
    values = settings.limits.model_dump(exclude={"run", "drain_seconds", *_OF_SCHEMAS})
    return Limits(**values, duplicate_window_seconds=settings.admission.duplicate_window_seconds)


def _run_limits(source: config.RunLimits) -> RunLimits:
    apart = {"timeout_seconds", "doom_loop", "doom_loop_repeats", "doom_loop_warnings"}
    return RunLimits(
        **source.model_dump(exclude=apart, exclude_none=True),
        timeout=duration(source.timeout_seconds),
        doom_loop=DoomLoop(
            action=DoomLoopAction.Value(f"DOOM_LOOP_ACTION_{source.doom_loop.upper()}"),
            repeats=source.doom_loop_repeats,
            warnings=source.doom_loop_warnings,
        ),
    )


def admission(settings: Settings) -> Rules:
    """Make the rules for inputs."""
    return Rules(
        input_bytes=settings.limits.input_bytes,
        rejected=tuple((rule.name, re.compile(rule.pattern)) for rule in settings.admission.reject),
        duplicate_window_seconds=settings.admission.duplicate_window_seconds,
    )


def edge(source: config.Server) -> Edge:
    """Make the numbers of the edge."""
    return Edge(
        request_bytes=source.request_bytes,
        response_bytes=source.response_bytes,
        metadata_bytes=source.metadata_bytes,
        streams_per_connection=source.streams_per_connection,
        unary_seconds=source.unary_seconds,
        write_seconds=source.write_seconds,
        watches=source.watches,
        lists=source.lists,
        keepalive=Keepalive(
            interval_seconds=source.keepalive_interval_seconds,
            timeout_seconds=source.keepalive_timeout_seconds,
            min_interval_seconds=source.keepalive_min_interval_seconds,
        ),
    )
