"""Turns settings into the parts of a daemon: models, policies, rules, limits. Reads secrets; opens and awaits nothing.

Above: `cli` and the daemon's reload. Below: `config_source` and the rooms whose values are made. What makes no sense in
the house, such as a default model that nobody serves, is ConfigInvalid, with the key and the source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from behest.v1.definition_pb2 import DoomLoop, DoomLoopAction, PermissionAction, PermissionRule
from behest.v1.definition_pb2 import Limits as RunLimits
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerTls
from behest.v1.tool_pb2 import SideEffect, ToolErrorPolicy, ToolPolicy, ToolTimeouts, ToolUnknownPolicy
from behestd import config, config_parts, planning_budgets, planning_context
from behestd.config_source import Configuration
from behestd.context.catalog import Sources
from behestd.core.circuit import CircuitPolicy
from behestd.core.definition import Operator
from behestd.core.route import RoutePolicy
from behestd.core.times import duration
from behestd.daemon import Plan
from behestd.errors import BehestError
from behestd.providers import anthropic_models, embedded_model, openai_models
from behestd.providers.anthropic import Anthropic, AnthropicSettings
from behestd.providers.catalog import Snapshot, Weighted, snapshot
from behestd.providers.embedded import Embedded, EmbeddedSettings
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import Provider, ProviderTimeouts
from behestd.providers.scripted import Scripted
from behestd.providers.secret import Secret
from behestd.runtime.admission import Rules
from behestd.runtime.house import Limits
from behestd.runtime.model_limits import Allowance
from behestd.secret import Reference, Vault, parse
from behestd.service.settings import Keepalive
from behestd.service.settings import Settings as Edge
from behestd.tools.catalog import Catalog
from behestd.tools.function import load
from behestd.tools.policy import Policies
from behestd.tools.schema import Validators
from behestd.wire import endpoint


def plan(configuration: Configuration) -> Plan:
    """Make the plan of a daemon. Raises ConfigInvalid, and Unsupported when an extra is not installed."""
    settings, vault = configuration.settings, configuration.vault
    found = planning_context.sources(settings.context)
    return Plan(
        models=models(configuration),
        tools=partial(tools, configuration, found),
        sources=found,
        data_dir=None if settings.storage.kind == "memory" else Path(settings.storage.data_dir),
        addresses=settings.server.addresses,
        limits=limits(settings),
        operator=operator(settings),
        rules=admission(settings),
        retries=retries(settings),
        circuits=circuits(settings),
        model_limits=model_limits(settings),
        budgets=planning_budgets.rules(settings.budgets),
        model_timeouts=ProviderTimeouts(**settings.models.timeouts.model_dump()),
        edge=edge(settings.server),
        servers=tool_servers(configuration),
        endpoints=endpoints(settings),
        fallbacks=settings.models.fallbacks,
        secrets=lambda reference: vault.read(parse(reference)).reveal(),
        heartbeat_seconds=settings.server.heartbeat_seconds,
        drain_seconds=settings.limits.drain_seconds,
    )


# --- models ---


def models(configuration: Configuration) -> Snapshot:
    """Make the providers and their catalog. Raises ConfigInvalid, Unsupported."""
    chosen = configuration.settings.models
    providers: list[Provider] = []
    for provider_id, source in {"scripted": None, **configuration.settings.providers}.items():
        if source is None or source.kind == "scripted":
            providers.append(Scripted(provider_id))
        else:
            make = {"anthropic": _anthropic, "openai": _openai, "embedded": _embedded}[source.kind]
            providers.append(make(provider_id, source, configuration.vault))
    found = snapshot(
        providers,
        aliases={name: _alias(target) for name, target in chosen.aliases.items()},
        default_model=chosen.default,
        default_embedding_model=chosen.default_embedding,
    )
    _check_writer(configuration, found)
    for key, resolve in (("default", found.resolve), ("default_embedding", found.resolve_embedding)):
        try:
            resolve("")
        except BehestError as error:
            if not _may_come(configuration.settings, getattr(chosen, key)):
                raise configuration.invalid(("models", key), error.message) from None
    return found


def _check_writer(configuration: Configuration, found: Snapshot) -> None:
    """Refuse a model for summaries that nobody serves."""
    writer = configuration.settings.compaction.model
    try:
        found.resolve(writer or configuration.settings.models.default)
    except BehestError as error:
        if writer and not _may_come(configuration.settings, writer):
            raise configuration.invalid(("compaction", "model"), error.message) from None


def _may_come(settings: config.Settings, name: str) -> bool:
    """Whether a model may come to be listed by a server of the configuration, which nobody has asked yet."""
    target = settings.models.aliases.get(name, name)
    servers = {server.name for server in settings.tools.servers if {"chat", "embeddings"} & set(server.offers)}
    return isinstance(target, str) and target.partition("/")[0] in servers


def _alias(target: str | tuple[config_parts.WeightedModel, ...]) -> str | tuple[Weighted, ...]:
    return target if isinstance(target, str) else tuple(Weighted(each.model, each.weight) for each in target)


def retries(settings: config.Settings) -> RoutePolicy:
    """Make the rules for attempts at models."""
    return RoutePolicy((), **settings.models.retries.model_dump(exclude=_BUDGET))


_BUDGET = {"budget", "budget_per_success", "budget_per_second"}
"""What of the retries is of all runs together."""


def circuits(settings: config.Settings) -> CircuitPolicy:
    """Make the rules for models that fail."""
    budget = settings.models.retries
    return CircuitPolicy(
        **settings.models.breaker.model_dump(),
        retries=budget.budget,
        retries_per_success=budget.budget_per_success,
        retries_per_second=budget.budget_per_second,
    )


def model_limits(settings: config.Settings) -> dict[str, Allowance]:
    """Make the limits of models that have some, by id."""
    wait_seconds = settings.models.limit_wait_seconds
    limits = {
        f"{provider_id}/{model.name}": Allowance(
            model.requests_per_minute, model.tokens_per_minute, model.calls, wait_seconds
        )
        for provider_id, provider in settings.providers.items()
        for model in provider.models
    }
    return {name: each for name, each in limits.items() if each != Allowance(wait_seconds=wait_seconds)}


def _openai(provider_id: str, source: config_parts.Provider, vault: Vault) -> Provider:
    settings = OpenAiSettings(
        **_reached(provider_id, source, vault),
        interface=source.interface,
        max_tokens_field=source.max_tokens_field,
    )
    facts = {model.name: openai_models.known(model.name, source.interface) for model in source.models}
    models = [_model(provider_id, _known(model, facts[model.name])) for model in source.models]
    return OpenAi(settings, models)


def _anthropic(provider_id: str, source: config_parts.Provider, vault: Vault) -> Provider:
    models = [_model(provider_id, _known(model, anthropic_models.known(model.name))) for model in source.models]
    return Anthropic(AnthropicSettings(**_reached(provider_id, source, vault)), models)


def _embedded(provider_id: str, source: config_parts.Provider, _: Vault) -> Provider:
    told = source.models or (config_parts.Model(name=embedded_model.NAME),)
    models = [_model(provider_id, _known(model, embedded_model.KNOWN)) for model in told]
    return Embedded(EmbeddedSettings(provider_id, source.display_name), models)


def _reached(provider_id: str, source: config_parts.Provider, vault: Vault) -> dict[str, Any]:
    """Return the settings that all adapters of HTTP providers have."""
    at = {"base_url": source.base_url} if source.base_url else {}
    return {
        "id": provider_id,
        "api_key": Secret("") if source.api_key is None else vault.read(source.api_key),
        "headers": {name: vault.read(value).reveal() for name, value in source.headers.items()},
        "connect_seconds": source.connect_seconds,
        "display_name": source.display_name,
        **at,
    }


def _known(
    source: config_parts.Model, facts: anthropic_models.Known | openai_models.Known | embedded_model.Known | None
) -> config_parts.Model:
    """Fill in what is known of a model of the vendor and the operator did not say."""
    names = ("capabilities", "context_window_tokens", "max_output_tokens", "embedding_dimensions")
    unsaid = [name for name in names if hasattr(facts, name) and name not in source.model_fields_set]
    return source.model_copy(update={name: getattr(facts, name) for name in unsaid})


def _model(provider_id: str, source: config_parts.Model) -> Model:
    takes_markers = "prompt_cache_markers" in source.capabilities
    return Model(
        id=f"{provider_id}/{source.name}",
        provider_id=provider_id,
        display_name=source.display_name,
        capabilities=ModelCapabilities(**dict.fromkeys(source.capabilities, True)),
        limits=ModelLimits(
            context_window_tokens=source.context_window_tokens,
            max_output_tokens=source.max_output_tokens,
            max_prompt_cache_markers=source.max_prompt_cache_markers if takes_markers else 0,
            embedding_dimensions=source.embedding_dimensions,
        ),
        prices=planning_budgets.prices(source),
    )


# --- tools and permissions ---


def tools(configuration: Configuration, sources: Sources, validators: Validators) -> Catalog:
    """Make the catalog of tools, with the functions of extensions, which are imported now; some give context.

    Raises ConfigInvalid, and whatever an extension raises.
    """
    settings = configuration.settings
    catalog = Catalog(validators, Policies(tool_policies(settings.tools.policies)))
    sources.forget_functions()
    if settings.extensions.modules:
        try:
            load(settings.extensions.modules, planning_context.Registry(catalog, sources))
        except (ImportError, ValueError) as error:
            raise configuration.invalid(("extensions", "modules"), str(error)) from error
    return catalog


def tool_policies(table: Mapping[str, config_parts.ToolPolicy]) -> dict[str, ToolPolicy]:
    """Make the contract's policies."""
    return {name: _policy(policy) for name, policy in table.items()}


def _policy(source: config_parts.ToolPolicy) -> ToolPolicy:
    limits = source.timeouts.model_dump(exclude_none=True)
    return ToolPolicy(
        side_effect=SideEffect.Value(f"SIDE_EFFECT_{source.side_effect.upper()}"),
        exclusive=source.exclusive,
        on_error=ToolErrorPolicy.Value(f"TOOL_ERROR_POLICY_{source.on_error.upper()}"),
        on_unknown=ToolUnknownPolicy.Value(f"TOOL_UNKNOWN_POLICY_{source.on_unknown.upper()}"),
        timeouts=ToolTimeouts(**{name.removesuffix("_seconds"): duration(value) for name, value in limits.items()}),
        max_attempts=source.max_attempts,
        doom_loop_exempt=source.doom_loop_exempt,
    )


def tool_servers(configuration: Configuration) -> tuple[Server, ...]:
    """Make the registrations of the configured tool servers. Raises ConfigInvalid for an address that is refused."""
    return tuple(
        _server(configuration, index, source) for index, source in enumerate(configuration.settings.tools.servers)
    )


def endpoints(settings: config.Settings) -> endpoint.AllowList:
    """Make the list of addresses that callers may register."""
    return endpoint.allow_list(settings.tools.allowed_endpoints)


def _server(configuration: Configuration, index: int, source: config_parts.ToolServer) -> Server:
    try:
        rules = endpoint.Rules(True, True, True, endpoints(configuration.settings))
        endpoint.check(source.address, rules, has_tls=source.tls is not None)
    except endpoint.EndpointRefused as error:
        raise configuration.invalid(("tools", "servers", str(index), "address"), error.message) from None
    server = Server(
        name=source.name,
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address=source.address,
        offers=[ServerOffer.Value(f"SERVER_OFFER_{offer.upper()}") for offer in source.offers],
        name_prefix=source.name_prefix,
        tool_policies=tool_policies(source.policies),
        token_ref=_shown(source.token),
    )
    if source.tls is not None:
        server.tls.CopyFrom(
            ServerTls(
                ca_ref=_shown(source.tls.ca),
                certificate_ref=_shown(source.tls.certificate),
                key_ref=_shown(source.tls.key),
                server_name=source.tls.server_name,
            )
        )
    if source.dedupe_retention_seconds is not None:
        server.dedupe_retention.CopyFrom(duration(source.dedupe_retention_seconds))
    return server


def _shown(reference: Reference | None) -> str:
    return "" if reference is None else str(reference)


def operator(settings: config.Settings) -> Operator:
    """Make the operator's part of every definition."""
    permissions = settings.permissions
    # Every address is local, or the settings would not have been accepted: this is local mode.
    default = "allow" if permissions.default == "auto" else permissions.default
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


# --- limits ---


def limits(settings: config.Settings) -> Limits:
    """Make the limits of the runtime."""
    values = settings.limits.model_dump(exclude={"run", "drain_seconds"})
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


def admission(settings: config.Settings) -> Rules:
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
