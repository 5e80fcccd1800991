"""Registrations of servers: what of them callers say and what the daemon, and who may change one.

Above: `registry`. Below: the two kinds of servers, `dialled` and `attached`.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from behest.v1.registry_service_pb2 import AttachHello
from behest.v1.server_pb2 import Server, ServerOffer
from behestd.errors import AlreadyExists, Forbidden, WrongState
from behestd.providers.listing import kept
from behestd.runtime.attached import Attached
from behestd.runtime.dialled import Dialled
from behestd.wire.pin import IdentityChanged

CONFIGURED_NAMESPACE = "default"
_OUTPUT_ONLY = (
    "id",
    "configured",
    "state",
    "error",
    "tool_names",
    "model_ids",
    "principal",
    "create_time",
    "update_time",
    "seen_time",
    "identity",
)

Registered = Dialled | Attached


class ServerNameTaken(AlreadyExists):
    """Raised when a name has another registration, or is not the caller's."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__("TOOL_SERVER_NAME_TAKEN", f"server name {name} {why}", name=name)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who changes registrations."""

    principal: str
    is_admin: bool


def asked_of(server: Server) -> Server:
    """What a caller says of a server, without what is the daemon's to say."""
    made = Server()
    made.CopyFrom(server)
    for name in _OUTPUT_ONLY:
        made.ClearField(name)  # type: ignore[arg-type]  # a name of a field, as above
    return made


def configured_of(server: Server) -> Server:
    """The registration of a server that the configuration names: its id follows from the name."""
    made = asked_of(server)
    made.configured = True
    made.id = "srv_" + sha256(f"{CONFIGURED_NAMESPACE}\0{server.name}".encode()).hexdigest()[:32]
    return made


def kept_of(hello: AttachHello) -> AttachHello:
    """What is kept of a hello: what the server serves, not how it does."""
    made = AttachHello(server_name=hello.server_name, tools=hello.tools, models=kept(hello.models))
    if hello.HasField("dedupe_retention"):
        made.dedupe_retention.CopyFrom(hello.dedupe_retention)
    return made


def with_offers_of(registration: Server, hello: AttachHello) -> Server:
    """The registration, with what a hello serves beyond what is registered: the hello is of the same principal."""
    can_chat = any(model.capabilities.chat for model in hello.models)
    can_embed = any(model.capabilities.embeddings for model in hello.models)
    said = {
        ServerOffer.SERVER_OFFER_TOOLS: bool(hello.tools) or not (can_chat or can_embed or registration.offers),
        ServerOffer.SERVER_OFFER_CHAT: can_chat,
        ServerOffer.SERVER_OFFER_EMBEDDINGS: can_embed,
    }
    more = [offer for offer, is_said in said.items() if is_said and offer not in registration.offers]
    if not more:
        return registration
    made = Server()
    made.CopyFrom(registration)
    made.offers.extend(more)
    return made


def may_replace(old: Registered, asked: Server, owner: Owner, replace: bool) -> bool:
    """Whether nothing is to be done, since the same is registered. Raises ServerNameTaken."""
    if old.registration.configured:
        raise ServerNameTaken(old.name, "is in the configuration")
    check_owner(old, owner)
    if asked_of(old.registration) == asked:
        # The same again, with `replace`, is the word that another certificate is meant.
        return not (replace and isinstance(old.error, IdentityChanged))
    if not replace:
        raise ServerNameTaken(old.name, "has another registration; replace it")
    return False


def check_owner(server: Registered, owner: Owner) -> None:
    """Raise ServerNameTaken for a server of somebody else; one of the configuration is everybody's to be."""
    is_own = server.registration.configured or server.registration.principal == owner.principal
    if not is_own and not owner.is_admin:
        raise ServerNameTaken(server.name, "is another principal's")


def check_removal(server: Registered, owner: Owner) -> None:
    """Raise WrongState for a server of the configuration, Forbidden for one of somebody else."""
    if server.registration.configured:
        text = f"server {server.name} is in the configuration"
        raise WrongState("TOOL_SERVER_CONFIGURED", text, serverId=server.registration.id)
    if not owner.is_admin and server.registration.principal != owner.principal:
        raise Forbidden("AUTH_SCOPE_MISSING", f"server {server.name} is another principal's", scope="admin")
