"""Makes providers, their models and the rules for attempts. Above: `plan`. Below: the adapters of providers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behestd.config import parts
from behestd.config.settings import Settings
from behestd.config.source import Configuration
from behestd.core.circuit import CircuitPolicy
from behestd.core.route import RoutePolicy
from behestd.errors import BehestError
from behestd.planning import budgets
from behestd.providers import anthropic_models, embedded_model, openai_models
from behestd.providers.anthropic import Anthropic, AnthropicSettings
from behestd.providers.catalog import Snapshot, Weighted, snapshot
from behestd.providers.embedded import Embedded, EmbeddedSettings
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import Provider
from behestd.providers.scripted import Scripted
from behestd.providers.secret import Secret
from behestd.runtime.model_limits import Allowance
from behestd.secret import Vault


def models(configuration: Configuration, kept: Mapping[str, Provider] | None = None) -> Snapshot:
    """Make the providers and their catalog; those that are kept are taken as they are.

    Raises ConfigInvalid, Unsupported.
    """
    chosen = configuration.settings.models
    providers: list[Provider] = []
    for provider_id, source in {"scripted": None, **configuration.settings.providers}.items():
        if kept is not None and provider_id in kept:
            providers.append(kept[provider_id])
        elif source is None or source.kind == "scripted":
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


def _may_come(settings: Settings, name: str) -> bool:
    """Whether a model may come to be listed by a server of the configuration, which nobody has asked yet."""
    target = settings.models.aliases.get(name, name)
    servers = {server.name for server in settings.tools.servers if {"chat", "embeddings"} & set(server.offers)}
    return isinstance(target, str) and target.partition("/")[0] in servers


def _alias(target: str | tuple[parts.WeightedModel, ...]) -> str | tuple[Weighted, ...]:
    return target if isinstance(target, str) else tuple(Weighted(each.model, each.weight) for each in target)


def retries(settings: Settings) -> RoutePolicy:
    """Make the rules for attempts at models."""
    return RoutePolicy((), **settings.models.retries.model_dump(exclude=_BUDGET))


_BUDGET = {"budget", "budget_per_success", "budget_per_second"}
"""What of the retries is of all runs together."""


def circuits(settings: Settings) -> CircuitPolicy:
    """Make the rules for models that fail."""
    budget = settings.models.retries
    return CircuitPolicy(
        **settings.models.breaker.model_dump(),
        retries=budget.budget,
        retries_per_success=budget.budget_per_success,
        retries_per_second=budget.budget_per_second,
    )


def model_limits(settings: Settings) -> dict[str, Allowance]:
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


def _openai(provider_id: str, source: parts.Provider, vault: Vault) -> Provider:
    settings = OpenAiSettings(
        **_reached(provider_id, source, vault),
        interface=source.interface,
        max_tokens_field=source.max_tokens_field,
    )
    facts = {model.name: openai_models.known(model.name, source.interface) for model in source.models}
    models = [_model(provider_id, _known(model, facts[model.name])) for model in source.models]
    return OpenAi(settings, models)


def _anthropic(provider_id: str, source: parts.Provider, vault: Vault) -> Provider:
    models = [_model(provider_id, _known(model, anthropic_models.known(model.name))) for model in source.models]
    return Anthropic(AnthropicSettings(**_reached(provider_id, source, vault)), models)


def _embedded(provider_id: str, source: parts.Provider, _: Vault) -> Provider:
    told = source.models or (parts.Model(name=embedded_model.NAME),)
    models = [_model(provider_id, _known(model, embedded_model.KNOWN)) for model in told]
    return Embedded(EmbeddedSettings(provider_id, source.display_name), models)


def _reached(provider_id: str, source: parts.Provider, vault: Vault) -> dict[str, Any]:
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
    source: parts.Model, facts: anthropic_models.Known | openai_models.Known | embedded_model.Known | None
) -> parts.Model:
    """Fill in what is known of a model of the vendor and the operator did not say."""
    names = ("capabilities", "context_window_tokens", "max_output_tokens", "embedding_dimensions")
    unsaid = [name for name in names if hasattr(facts, name) and name not in source.model_fields_set]
    return source.model_copy(update={name: getattr(facts, name) for name in unsaid})


def _model(provider_id: str, source: parts.Model) -> Model:
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
        prices=budgets.prices(source),
    )
