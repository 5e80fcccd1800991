"""Makes the catalog of tools, policies and registrations. Above: `plan`. Below: the rooms of tools and servers."""

from __future__ import annotations

from collections.abc import Mapping

from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerTls
from behest.v1.tool_pb2 import SideEffect, ToolErrorPolicy, ToolPolicy, ToolTimeouts, ToolUnknownPolicy
from behestd.config import parts
from behestd.config.settings import Settings
from behestd.config.source import Configuration
from behestd.context.catalog import Sources
from behestd.core.times import duration
from behestd.planning import context
from behestd.secret import Reference
from behestd.tools.catalog import Catalog
from behestd.tools.function import load
from behestd.tools.policy import Policies
from behestd.tools.schema import Validators
from behestd.wire import endpoint


def tools(configuration: Configuration, sources: Sources, validators: Validators) -> Catalog:
    """Make the catalog of tools, with the functions of extensions, which are imported now; some give context.

    Raises ConfigInvalid, and whatever an extension raises.
    """
    settings = configuration.settings
    catalog = Catalog(validators, Policies(tool_policies(settings.tools.policies)))
    sources.forget_functions()
    if settings.extensions.modules:
        try:
            load(settings.extensions.modules, context.Registry(catalog, sources))
        except (ImportError, ValueError) as error:
            raise configuration.invalid(("extensions", "modules"), str(error)) from error
    return catalog


def tool_policies(table: Mapping[str, parts.ToolPolicy]) -> dict[str, ToolPolicy]:
    """Make the contract's policies."""
    return {name: _policy(policy) for name, policy in table.items()}


def _policy(source: parts.ToolPolicy) -> ToolPolicy:
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


def endpoints(settings: Settings) -> endpoint.AllowList:
    """Make the list of addresses that callers may register."""
    return endpoint.allow_list(settings.tools.allowed_endpoints)


def _server(configuration: Configuration, index: int, source: parts.ToolServer) -> Server:
    try:
        rules = endpoint.Rules(True, True, True, endpoints(configuration.settings))
        endpoint.check(source.address, rules, has_tls=source.tls is not None)
    except endpoint.EndpointRefused as error:
        raise configuration.invalid(("tools", "servers", index, "address"), error.message) from None
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
