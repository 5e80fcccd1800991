"""The catalog: which providers and models there are, and what a model can do. Above: runtime and service.

What is known at one moment is a `Snapshot`, a value that never changes: a reload builds a new one and swaps
it in whole, and whoever resolved a model keeps the provider it got. Every namespace sees the providers of the
configuration and those of the servers that were registered in it, and no others. Health belongs to the caller of
`core/route.py`, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    namespace: str = ""
    """Whose registered server it is. Empty: everybody's."""

    @property
    def endpoint(self) -> str:
        """What it is known by to those who count calls: models of two namespaces may have the same id."""
        return place(self.namespace, self.model.id)


def place(namespace: str, model_id: str) -> str:
    """Name a model of a namespace apart from that of any other; an empty namespace is everybody's."""
    return f"{namespace}\0{model_id}" if namespace else model_id


def parted(endpoint: str) -> tuple[str, str]:
    """Give namespace and model of what `place` has named."""
    namespace, _, model_id = endpoint.rpartition("\0")
    return namespace, model_id


@dataclass(frozen=True, slots=True)
class Weighted:
    """One of the models that an alias stands for, and how often it is chosen beside the others."""

    model: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is known at one moment; providers and models in the order of their ids. Made by `snapshot`."""

    providers: Mapping[str, Provider] = field(default_factory=dict)
    models: Mapping[str, Resolved] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    default_model: str = ""
    default_embedding_model: str = ""
    weighted: Mapping[str, tuple[Weighted, ...]] = field(default_factory=dict)
    """Aliases that stand for several models; `aliases` has the first of each."""

    def resolve(self, name: str) -> Resolved:
        """Find a model by `provider/name` or alias; an empty name is the default model.

        Raises: ProviderNotFound, ModelNotFound.
        """
        return self._resolve(name or self.default_model)

    def choose(self, name: str, needs: Iterable[str], chance: float) -> Resolved:
        """Find a model as `resolve` does; of several that an alias stands for, one by weight and chance, in [0, 1).

        Among these, only such as can do what is needed (fields of ModelCapabilities), as long as there is one.
        """
        several = self.weighted.get(name or self.default_model)
        if several is None:
            return self.resolve(name)
        there = [each for each in several if each.model in self.models]
        wanted = tuple(needs)
        able = [each for each in there if lacks(self.models[each.model].model, wanted) is None] or there
        point = chance * sum(each.weight for each in able)
        for each in able:
            point -= each.weight
            if point < 0:
                return self.models[each.model]
        return self._resolve(several[0].model)

    def chance_of(self, name: str, chance: float) -> float:
        """Round a chance to as many steps as an alias has weights, so that who chooses alike has the same chance.

        0 for a name that stands for one model.
        """
        several = self.weighted.get(name or self.default_model)
        if several is None:
            return 0.0
        steps = sum(each.weight for each in several)
        return (int(chance * steps) + 0.5) / steps

    def candidates(self, name: str, others: Iterable[str], needs: Sequence[str], chance: float) -> list[Resolved]:
        """Find the models to try for a name, and after it for others, without repeats.

        Others that cannot do what is needed, or are not there, are left out. Raises: ProviderNotFound, ModelNotFound
        and CapabilityMissing for the first.
        """
        first = self.choose(name, needs, chance)
        missing = lacks(first.model, needs)
        if missing is not None:
            raise CapabilityMissing(first.model.id, missing)
        found = {first.model.id: first}
        for other in others:
            if other in self.models or other in self.aliases:
                resolved = self.choose(other, needs, chance)
                if lacks(resolved.model, needs) is None:
                    found.setdefault(resolved.model.id, resolved)
        return list(found.values())

    def fallbacks_of(self, name: str, configured: Mapping[str, Sequence[str]]) -> Sequence[str]:
        """Choose of the configured fallbacks, by name, those of a model or alias, an empty name being the default."""
        if not configured:
            return ()
        name = name or self.default_model
        return configured.get(name) or configured.get(self.aliases.get(name, "")) or ()

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
    aliases: Mapping[str, str | Sequence[Weighted]] | None = None,
    default_model: str = "",
    default_embedding_model: str = "",
) -> Snapshot:
    """Put a snapshot together. Aliases may name models that are not there (yet), defaults may be aliases.

    Raises: ProviderTaken.
    """
    by_id: dict[str, Provider] = {}
    for provider in sorted(providers, key=lambda provider: provider.id):
        if provider.id in by_id:
            raise ProviderTaken(provider.id)
        by_id[provider.id] = provider
    several = {name: tuple(given) for name, given in (aliases or {}).items() if not isinstance(given, str)}
    single = {name: given for name, given in (aliases or {}).items() if isinstance(given, str)}
    single |= {name: given[0].model for name, given in several.items()}
    default_id = single.get(default_model, default_model)
    models = {
        model.id: Resolved(provider, _marked(model, model.id == default_id))
        for provider in by_id.values()
        for model in sorted(provider.models(), key=lambda model: model.id)
    }
    return Snapshot(
        MappingProxyType(by_id),
        MappingProxyType(models),
        MappingProxyType(single),
        default_model,
        default_embedding_model,
        MappingProxyType(several),
    )


def _marked(model: Model, is_default: bool) -> Model:
    if model.is_default == is_default:
        return model
    copy = Model()
    copy.CopyFrom(model)
    copy.is_default = is_default
    return copy


class Catalog:
    """Holds the snapshots in force and is the only place that replaces them.

    There is one for all, and one for each namespace that has providers of its own, which nobody else sees. Where both
    have a provider of one name, that of all is seen.
    It closes no provider: somebody may be using one that has just left, so the parting ones are handed back.
    """

    def __init__(self, first: Snapshot) -> None:
        self._base = first
        self._registered: dict[str, dict[str, Provider]] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._current = first

    @property
    def current(self) -> Snapshot:
        """Return the snapshot of what everybody sees; it never changes."""
        return self._current

    def of(self, namespace: str) -> Snapshot:
        """Return the snapshot of what a namespace sees; it never changes."""
        return self._snapshots.get(namespace, self._current)

    def swap(self, new: Snapshot) -> tuple[Provider, ...]:
        """Put in force what is everybody's, beside what is registered, and return the providers that it drops."""
        old, self._base = self._base, new
        self._renew()
        kept = {id(provider) for provider in new.providers.values()}
        return tuple(provider for provider in old.providers.values() if id(provider) not in kept)

    def register(self, provider: Provider, *, namespace: str = "", replace: bool = False) -> tuple[Provider, ...]:
        """Add a provider for a namespace, an empty one being everybody, and return the one it replaced, if any.

        Raises: ProviderTaken unless `replace`.
        """
        old = self.of(namespace).providers.get(provider.id)
        if old is not None and not replace:
            raise ProviderTaken(provider.id)
        self._registered.setdefault(namespace, {})[provider.id] = provider
        self._renew()
        return () if old is None or old is provider else (old,)

    def remove(self, provider_id: str, *, namespace: str = "") -> tuple[Provider, ...]:
        """Take a registered provider out and return it. Raises: ProviderNotFound."""
        own = self._registered.get(namespace, {})
        provider = own.pop(provider_id, None)
        if provider is None:
            raise ProviderNotFound(provider_id)
        if not own:
            del self._registered[namespace]
        self._renew()
        return (provider,)

    def registered(self, provider_id: str, namespace: str = "") -> Provider | None:
        """Return a registered provider, whether or not its namespace sees another one of that name."""
        return self._registered.get(namespace, {}).get(provider_id)

    def _renew(self) -> None:
        self._current = _joined(self._base, self._registered.get("", {}), "")
        namespaces = self._registered.keys() - {""}
        self._snapshots = {name: _joined(self._current, self._registered[name], name) for name in namespaces}


def _joined(base: Snapshot, own: Mapping[str, Provider], namespace: str) -> Snapshot:
    """A snapshot with more providers, but for those whose names are taken."""
    added = [provider for name, provider in own.items() if name not in base.providers]
    if not added:
        return base
    default_id = base.aliases.get(base.default_model, base.default_model)
    providers = {**base.providers, **{provider.id: provider for provider in added}}
    models = dict(base.models)
    for provider in added:
        for model in provider.models():
            models[model.id] = Resolved(provider, _marked(model, model.id == default_id), namespace)
    return replace(
        base,
        providers=MappingProxyType(dict(sorted(providers.items()))),
        models=MappingProxyType(dict(sorted(models.items()))),
    )


def check(chat: Chat, model: Model) -> None:
    """Refuse a call that asks more of a model than it can do, before anything leaves. Raises: CapabilityMissing."""
    missing = lacks(model, needed(chat))
    if missing is not None:
        raise CapabilityMissing(model.id, missing)


def lacks(model: Model, needs: Iterable[str]) -> str | None:
    """Return the first of the needed capabilities that a model has not, or None."""
    capabilities = model.capabilities
    for capability in needs:
        if not getattr(capabilities, capability):
            return capability
    return None


def needed(chat: Chat) -> list[str]:
    """Return the capabilities that a call needs, as field names of ModelCapabilities. May repeat itself."""
    needs = ["chat"]
    if chat.tools:
        needs.append("tools")
    capability = _OF_FORMAT.get(chat.response_format.kind)
    if capability is not None:
        needs.append(capability)
    for message in chat.messages[:]:
        for part in message.parts[:]:
            if part.WhichOneof("kind") != "text":
                needs += _needed_by(part)
    return needs


def _needed_by(part: Part) -> Iterator[str]:
    kind = part.WhichOneof("kind") or ""
    if kind in _OF_PART:
        yield _OF_PART[kind]
    elif kind == "tool_result":
        for piece in part.tool_result.parts:
            yield from _needed_by(piece)
