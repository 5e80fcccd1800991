"""Models of registered servers in the catalog: put there wholly or not at all, and taken out again.

Above: `registry`. Below: the catalog of models, `providers.listing` and `providers.remote_provider`. A server is one
provider, named as the server is, of the namespace that it is registered in: no other one sees it or learns of its name.
The servers of the configuration are everybody's, as its providers are. What a server lists now takes the place of what
it listed before; who resolved a model keeps what it got.
"""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1.model_pb2 import Model
from behest.v1.server_pb2 import Server, ServerOffer
from behestd.providers.catalog import Catalog, ProviderTaken
from behestd.providers.listing import catalogued
from behestd.providers.remote_provider import Answering, RemoteProvider

_CHAT, _EMBEDDINGS = ServerOffer.SERVER_OFFER_CHAT, ServerOffer.SERVER_OFFER_EMBEDDINGS


def offers_models(registration: Server) -> bool:
    """Whether a server offers models."""
    return _CHAT in registration.offers or _EMBEDDINGS in registration.offers


class RegisteredModels:
    """Keeps the models of servers in the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def made(
        self, namespace: str, registration: Server, listed: Sequence[Model], answering: Answering
    ) -> RemoteProvider | None:
        """Make the provider that a server is now, None for one without models. Nothing is changed yet.

        Raises ProviderTaken, and InvalidRequest for what it lists.
        """
        if not offers_models(registration):
            return None
        known = self._catalog.of(_place(namespace, registration)).providers.get(registration.name)
        if known is not None and not _is_of(known, registration):
            raise ProviderTaken(registration.name)
        chat, embeddings = _CHAT in registration.offers, _EMBEDDINGS in registration.offers
        made = catalogued(registration.name, listed, chat=chat, embeddings=embeddings)
        return RemoteProvider(registration, made, answering) if made else None

    def put(self, namespace: str, registration: Server, provider: RemoteProvider | None) -> tuple[str, ...]:
        """Put what was made into the catalog, in place of what the server had there; gives the ids of its models."""
        if provider is None:
            self.withdraw(namespace, registration)
            return ()
        self._catalog.register(provider, namespace=_place(namespace, registration), replace=True)
        return tuple(model.id for model in provider.models())

    def withdraw(self, namespace: str, registration: Server) -> None:
        """Take the models of a server out of the catalog. Nothing when there are none."""
        place = _place(namespace, registration)
        known = self._catalog.registered(registration.name, place)
        if known is not None and _is_of(known, registration):
            self._catalog.remove(registration.name, namespace=place)


def _place(namespace: str, registration: Server) -> str:
    return "" if registration.configured else namespace


def _is_of(provider: object, registration: Server) -> bool:
    return isinstance(provider, RemoteProvider) and provider.describe().server_id == registration.id
