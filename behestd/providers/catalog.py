"""The catalog: which providers and models there are, and what a model can do. Above: runtime and service.

What is known at one moment is a `Snapshot`, a value that never changes: a reload builds a new one and swaps
it in whole, and whoever resolved a model keeps the provider it got. Health belongs to the caller of
`core/route.py`, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from behest.v1.chat_pb2 import ResponseFormatKind
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Part
from behest.v1.model_pb2 import Model
from behestd.errors import AlreadyExists, ModelNotFound, NotFound, WrongState
from behestd.providers.provider import Provider

_OF_PART = {"image": "image_input", "audio": "audio_input", "file": "file_input"}
_OF_FORMAT = {
    int(ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT): "json_object",
    int(ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA): "json_schema",
}


class ProviderNotFound(NotFound):
    """Raised when there is no such provider."""

    def __init__(self, provider: str) -> None:
        super().__init__("PROVIDER_NOT_FOUND", f"provider {provider} not found", provider=provider)


class ProviderTaken(AlreadyExists):
    """Raised when a provider's id is in use by another one."""

    def __init__(self, provider: str) -> None:
        super().__init__("TOOL_SERVER_NAME_TAKEN", f"there is a provider {provider} already", name=provider)


class CapabilityMissing(WrongState):
    """Raised when a model cannot do what a call asks of it; `capability` is a field of ModelCapabilities."""

    def __init__(self, model: str, capability: str) -> None:
        super().__init__(
            "PROVIDER_CAPABILITY_MISSING", f"model {model} lacks {capability}", model=model, capability=capability
        )
        self.capability = capability


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model and the provider that serves it."""

    provider: Provider
    model: Model


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is known at one moment; providers and models in the order of their ids. Made by `snapshot`."""

    providers: Mapping[str, Provider] = field(default_factory=dict)
    models: Mapping[str, Resolved] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    default_model: str = ""
    default_embedding_model: str = ""

    def resolve(self, name: str) -> Resolved:
        """Find a model by `provider/name` or alias; an empty name is the default model.

        Raises: ProviderNotFound, ModelNotFound.
        """
        return self._resolve(name or self.default_model)

    def resolve_embedding(self, name: str) -> Resolved:
        """Find a model that makes embeddings; an empty name is the default embedding model.

        Raises: ProviderNotFound, ModelNotFound, CapabilityMissing.
        """
        found = self._resolve(name or self.default_embedding_model)
        if not found.model.capabilities.embeddings:
            raise CapabilityMissing(found.model.id, "embeddings")
        return found

    def provider(self, provider_id: str) -> Provider:
        """Find a provider. Raises: ProviderNotFound."""
        try:
            return self.providers[provider_id]
        except KeyError:
            raise ProviderNotFound(provider_id) from None

    def _resolve(self, name: str) -> Resolved:
        found = self.models.get(name) or self.models.get(self.aliases.get(name, ""))
        if found is not None:
            return found
        provider_id, slash, _ = name.partition("/")
        if slash and provider_id not in self.providers:
            raise ProviderNotFound(provider_id)
        raise ModelNotFound(name)


def snapshot(
    providers: Iterable[Provider],
    *,
    aliases: Mapping[str, str] | None = None,
    default_model: str = "",
    default_embedding_model: str = "",
) -> Snapshot:
    """Put a snapshot together. Aliases may name models that are not there (yet). Raises: ProviderTaken."""
    by_id: dict[str, Provider] = {}
    for provider in sorted(providers, key=lambda provider: provider.id):
        if provider.id in by_id:
            raise ProviderTaken(provider.id)
        by_id[provider.id] = provider
    models = {
        model.id: Resolved(provider, _marked(model, model.id == default_model))
        for provider in by_id.values()
        for model in sorted(provider.models(), key=lambda model: model.id)
    }
    return Snapshot(
        MappingProxyType(by_id),
        MappingProxyType(models),
        MappingProxyType(dict(aliases or {})),
        default_model,
        default_embedding_model,
    )


def _marked(model: Model, is_default: bool) -> Model:
    if model.is_default == is_default:
        return model
    copy = Model()
    copy.CopyFrom(model)
    copy.is_default = is_default
    return copy


class Catalog:
    """Holds the snapshot in force and is the only place that replaces it.

    It closes no provider: somebody may be using one that has just left, so the parting ones are handed back.
    """

    def __init__(self, first: Snapshot) -> None:
        self._current = first

    @property
    def current(self) -> Snapshot:
        """Return the snapshot in force; it never changes."""
        return self._current

    def swap(self, new: Snapshot) -> tuple[Provider, ...]:
        """Put a snapshot in force and return the providers that it holds no more."""
        old, self._current = self._current, new
        kept = {id(provider) for provider in new.providers.values()}
        return tuple(provider for provider in old.providers.values() if id(provider) not in kept)

    def register(self, provider: Provider, *, replace: bool = False) -> tuple[Provider, ...]:
        """Add a provider and return the one it replaced, if any. Raises: ProviderTaken unless `replace`."""
        if provider.id in self._current.providers and not replace:
            raise ProviderTaken(provider.id)
        return self.swap(self._with({**self._current.providers, provider.id: provider}))

    def remove(self, provider_id: str) -> tuple[Provider, ...]:
        """Take a provider out and return it. Raises: ProviderNotFound."""
        self._current.provider(provider_id)
        rest = {key: provider for key, provider in self._current.providers.items() if key != provider_id}
        return self.swap(self._with(rest))

    def _with(self, providers: Mapping[str, Provider]) -> Snapshot:
        now = self._current
        return snapshot(
            providers.values(),
            aliases=now.aliases,
            default_model=now.default_model,
            default_embedding_model=now.default_embedding_model,
        )


def check(chat: Chat, model: Model) -> None:
    """Refuse a call that asks more of a model than it can do, before anything leaves. Raises: CapabilityMissing."""
    for capability in needed(chat):
        if not getattr(model.capabilities, capability):
            raise CapabilityMissing(model.id, capability)


def needed(chat: Chat) -> Iterator[str]:
    """Yield the capabilities that a call needs, as field names of ModelCapabilities. May repeat itself."""
    yield "chat"
    if chat.tools:
        yield "tools"
    capability = _OF_FORMAT.get(chat.response_format.kind)
    if capability is not None:
        yield capability
    for message in chat.messages:
        for part in message.parts:
            yield from _needed_by(part)


def _needed_by(part: Part) -> Iterator[str]:
    kind = part.WhichOneof("kind") or ""
    if kind in _OF_PART:
        yield _OF_PART[kind]
    elif kind == "tool_result":
        for piece in part.tool_result.parts:
            yield from _needed_by(piece)
