"""What registered servers offer, in the catalogs: put there wholly or not at all, and taken out again.

Above: `registry`. Below: the catalog of tools, `registered_models`, and the two kinds of servers.
"""

from __future__ import annotations

from behest.v1.model_service_pb2 import ListModelsResponse
from behest.v1.tool_service_pb2 import ListToolsResponse
from behestd.log.store import Delete, Put, Record
from behestd.runtime.alarms import alarm
from behestd.runtime.attached import Attached
from behestd.runtime.dialled import Dialled, Listing
from behestd.runtime.house import House
from behestd.runtime.registered_models import RegisteredModels
from behestd.runtime.registration import Registered

KIND = "server"
TOOLS_KIND = "server_tools"
MODELS_KIND = "server_models"
"""Records by name of the server: its registration, the tools that it listed last, or its last hello, and the models."""


class Offers:
    """Keeps the catalogs in step with what servers offer."""

    def __init__(self, house: House) -> None:
        self._tools = house.tools
        self._models = RegisteredModels(house.models)

    def put(self, server: Registered, listing: Listing | None = None) -> None:
        """Put all that a server lists into the catalogs, in place of what was there; nothing when it raises.

        A dialled server takes the listing for its own. Raises InvalidRequest, ToolNameTaken and ProviderTaken.
        """
        assert server.remote is not None
        assert server.answering is not None
        listing = listing or _listing(server)
        models = self._models.made(server.namespace, server.registration, listing.models, server.answering)
        bind, standing = server.remote.bind, server.standing
        before = self._tools.offered(server.namespace, server.registration.id)
        tools = self._tools.register_server(server.namespace, server.offered(), listing.tools, bind, standing)
        alarm(server.name, before, tools)
        server.model_ids = self._models.put(server.namespace, server.registration, models)
        server.tool_names = tuple(tool.name for tool in tools)
        if isinstance(server, Dialled):
            server.listing = listing
        server.is_offered = True

    def remove(self, server: Registered) -> None:
        """Take all that a server offers out of the catalogs."""
        self._tools.unregister_server(server.namespace, server.registration.id)
        self._models.withdraw(server.namespace, server.registration)
        server.tool_names = server.model_ids = ()
        server.is_offered = False

    def restore(self, made: Registered, old: Registered | None) -> None:
        """Make the catalogs what they were before a registration that came to nothing."""
        if old is None or old.remote is None or not old.is_offered:
            self.remove(made)
        else:
            self.put(old)


def listing_of(tools: bytes, models: bytes) -> Listing:
    """Read what was recorded of the listing of a dialled server."""
    recorded = ListModelsResponse.FromString(models).models
    return Listing(tuple(ListToolsResponse.FromString(tools).tools), tuple(recorded))


def puts_of(server: Registered) -> list[Put]:
    """What is recorded of a server: what it lists, and its registration, unless that is in the configuration."""
    registration = server.registration
    puts = [] if registration.configured else [_put(server, KIND, registration.SerializeToString())]
    if isinstance(server, Attached):
        return [*puts, _put(server, TOOLS_KIND, server.hello.SerializeToString())]
    puts.append(_put(server, TOOLS_KIND, ListToolsResponse(tools=server.listing.tools).SerializeToString()))
    models = ListModelsResponse(models=server.listing.models).SerializeToString()
    return [*puts, _put(server, MODELS_KIND, models)] if models else puts


def deletes_of(namespace: str, name: str) -> tuple[Delete, ...]:
    """Everything that is recorded of a server."""
    return tuple(Delete(namespace, kind, name) for kind in (KIND, TOOLS_KIND, MODELS_KIND))


def _put(server: Registered, kind: str, body: bytes) -> Put:
    return Put(Record(server.namespace, kind, server.name, body))


def _listing(server: Registered) -> Listing:
    if isinstance(server, Attached):
        return Listing(tuple(server.tools), tuple(server.models))
    return server.listing
