"""The registry of servers: durable registrations, dialled again at each start and whenever the connection is lost.

Above: RegistryService, and the daemon, which loads it before runs are recovered, so that what they pinned is there.
Below: records of the store, the tools' catalog and `dialled`. Servers of the configuration are registered likewise,
cannot be changed by calls, and have their names before all others. A registration takes effect wholly or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256

import structlog

from behest.v1.server_pb2 import Server, ServerTls
from behest.v1.tool_pb2 import Tool
from behest.v1.tool_service_pb2 import ListToolsResponse
from behestd.core.times import timestamp
from behestd.errors import (
    AlreadyExists,
    BehestError,
    Exhausted,
    Forbidden,
    Internal,
    InvalidRequest,
    NotFound,
    StorageFull,
    WrongState,
)
from behestd.log.store import Change, Delete, Full, Put, Record
from behestd.runtime.dialled import CONNECT_SECONDS, Dialled
from behestd.runtime.house import House
from behestd.tools.endpoint import Rules, target
from behestd.tools.remote import RemoteServer
from behestd.tools.remote_channel import NO_TOKEN, Link, Tls
from behestd.tools.tool import ToolFailure

logger = structlog.get_logger(__name__)

KIND = "server"
TOOLS_KIND = "server_tools"
"""Records by name of the server: its registration, and the tools that it listed last."""
MAX_SERVERS = 1_000
"""Most servers of a namespace."""
CONFIGURED_NAMESPACE = "default"
_ALL = 1_000_000
_CONFIGURED = Rules(allow_loopback=True, allow_unix=True)
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
)


class ServerNotFound(NotFound):
    """Raised when there is no such server."""

    def __init__(self, server_id: str) -> None:
        super().__init__("TOOL_SERVER_NOT_FOUND", f"server {server_id} not found", serverId=server_id)


class ServerNameTaken(AlreadyExists):
    """Raised when a name has another registration, or is not the caller's."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__("TOOL_SERVER_NAME_TAKEN", f"server name {name} {why}", name=name)


@dataclass(frozen=True, slots=True)
class Dialling:
    """How servers are reached. `secrets` gives the text that a reference names; it raises LookupError or ValueError."""

    secrets: Callable[[str], str]
    rules: Rules = field(default_factory=Rules)
    """Which addresses callers may register."""
    configured: Sequence[Server] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """Who changes registrations."""

    principal: str
    is_admin: bool


class Registry:
    """All registrations. `load`, then `run` for as long as the daemon lives; everything else while that goes on."""

    def __init__(self, house: House, dialling: Dialling) -> None:
        self._house = house
        self._dialling = dialling
        self._servers: dict[str, dict[str, Dialled]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._keepers: dict[Dialled, asyncio.Task[None]] = {}
        self._closing = asyncio.Event()
        # A registration waits for its server in the middle, and no other one may come between. An owner with an inbox
        # would be the same lock with a queue.
        self._lock = asyncio.Lock()

    # --- life ---

    async def load(self) -> None:
        """Take up what is configured and what is recorded, with the tools last known. Nothing is dialled yet."""
        for server in self._dialling.configured:
            made = _registration(server)
            made.configured = True
            made.id = "srv_" + sha256(f"{CONFIGURED_NAMESPACE}\0{server.name}".encode()).hexdigest()[:32]
            await self._load(CONFIGURED_NAMESPACE, made)
        for record in await self._house.log.store.records("", KIND, limit=_ALL):
            server = Server.FromString(record.body)
            if server.name in self._servers.get(record.namespace, {}):
                logger.warning("registration gives way to the configuration", server=server.name)
            else:
                await self._load(record.namespace, server)

    async def _load(self, namespace: str, server: Server) -> None:
        record = await self._house.log.store.record(namespace, TOOLS_KIND, server.name, 0)
        tools = ListToolsResponse.FromString(record.body).tools if record is not None else ()
        try:
            made = Dialled(namespace, server, self._dial(server), tools)
            self._offer(made, tools)
        except BehestError as error:
            logger.warning("server not taken up", server=server.name, reason=error.reason)
            made = Dialled(namespace, server, None, tools)
            made.disconnect(error)
        self._servers.setdefault(namespace, {})[server.name] = made

    async def run(self) -> None:
        """Keep all servers connected until `close`, then let them go."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for server in list(self._all()):
                self._keep(server)
            await self._closing.wait()
            for keeper in self._keepers.values():
                keeper.cancel()
        for server in self._all():
            if server.remote is not None:
                await server.remote.close()

    async def settled(self, seconds: float) -> None:
        """Wait until every server was reached or was not, but not longer than that."""
        try:
            async with asyncio.timeout(seconds):
                for server in list(self._all()):
                    await server.tried.wait()
        except TimeoutError:
            logger.warning("some servers are not reached yet")

    def close(self) -> None:
        """Let the servers go. Idempotent."""
        self._closing.set()

    def _keep(self, server: Dialled) -> None:
        if server.remote is not None and self._tasks is not None:
            self._keepers[server] = self._tasks.create_task(self._keep_going(server))

    async def _keep_going(self, server: Dialled) -> None:
        try:
            await server.keep(self._learn, self._house.clock, self._house.rng)
        except Exception:
            # The other servers share a task group with this one.
            logger.exception("server not kept, by a fault", server=server.name)
            server.disconnect(Internal("RUNTIME_INTERNAL", "a fault of the daemon; its log says more"))

    def _all(self) -> Iterator[Dialled]:
        return (server for servers in self._servers.values() for server in servers.values())

    # --- finding ---

    def find(self, namespace: str, server_id: str) -> Dialled:
        """The server of that id. Raises ServerNotFound."""
        for server in self._servers.get(namespace, {}).values():
            if server.registration.id == server_id:
                return server
        raise ServerNotFound(server_id)

    def names(self, namespace: str) -> list[str]:
        """The names of all servers, ascending."""
        return sorted(self._servers.get(namespace, {}))

    def named(self, namespace: str, name: str) -> Dialled | None:
        """The server of that name."""
        return self._servers.get(namespace, {}).get(name)

    # --- changing ---

    async def register(self, namespace: str, wanted: Server, owner: Owner, *, replace: bool) -> tuple[Dialled, bool]:
        """Register a server, durably, and reach it if possible. Whether the same registration was there already.

        Raises ServerNameTaken, EndpointRefused, InvalidRequest and ToolNameTaken of its tools, Exhausted, StorageFull.
        """
        async with self._lock:
            old = self.named(namespace, wanted.name)
            asked = _registration(wanted)
            if old is not None and _may_replace(old, asked, owner, replace):
                return old, True
            if old is None and len(self._servers.get(namespace, {})) >= MAX_SERVERS:
                raise Exhausted("RUNTIME_OVERLOADED", f"there are {MAX_SERVERS} servers", limit=MAX_SERVERS)
            now = timestamp(self._house.clock.now_ns())
            asked.id = old.registration.id if old is not None else self._house.ids.make("srv")
            asked.principal = owner.principal
            asked.create_time.CopyFrom(old.registration.create_time if old is not None else now)
            asked.update_time.CopyFrom(now)
            made = Dialled(namespace, asked, self._dial(asked), old.tools if old is not None else ())
            try:
                await self._reach(made)
                await self._record(made)
            except BaseException:
                self._take_back(made, old)
                await made.close()
                raise
            self._servers.setdefault(namespace, {})[made.name] = made
            if old is not None:
                self._let_go(old)
            self._keep(made)
            return made, False

    async def unregister(self, namespace: str, server_id: str, owner: Owner) -> None:
        """Remove a registration. No error when there is none. Raises WrongState for a configured one, Forbidden."""
        async with self._lock:
            servers = self._servers.get(namespace, {})
            server = next((server for server in servers.values() if server.registration.id == server_id), None)
            if server is None:
                return
            if server.registration.configured:
                text = f"server {server.name} is in the configuration"
                raise WrongState("TOOL_SERVER_CONFIGURED", text, serverId=server_id)
            if not owner.is_admin and server.registration.principal != owner.principal:
                raise Forbidden("AUTH_SCOPE_MISSING", f"server {server.name} is another principal's", scope="admin")
            deletes = (Delete(namespace, KIND, server.name), Delete(namespace, TOOLS_KIND, server.name))
            await self._commit(Change(deletes=deletes))
            del servers[server.name]
            self._house.tools.unregister_server(namespace, server_id)
            self._let_go(server)

    async def _reach(self, made: Dialled) -> None:
        """Dial a new registration and take what it lists; one that is not reached keeps the tools last known."""
        assert made.remote is not None
        try:
            tools: Sequence[Tool] = await made.remote.list_tools(CONNECT_SECONDS)
        except ToolFailure as failure:
            made.failed(failure)
            self._offer(made, made.tools)
            return
        self._offer(made, tools)
        made.reached(self._house.clock.now_ns())

    async def _learn(self, server: Dialled, tools: Sequence[Tool]) -> None:
        """Take what a server lists now, if that has changed."""
        async with self._lock:
            if self.named(server.namespace, server.name) is not server:
                return
            is_known = list(tools) == list(server.tools)
            if is_known and len(server.tool_names) == len(tools):
                return
            self._offer(server, tools)
            if not is_known:
                await self._commit(Change(puts=(_tools_put(server),)))

    def _offer(self, server: Dialled, tools: Sequence[Tool]) -> None:
        """Put a server's tools into the catalog, all or none. Raises InvalidRequest and ToolNameTaken."""
        assert server.remote is not None
        made = self._house.tools.register_server(server.namespace, server.registration, tools, server.remote.bind)
        server.tools = tuple(tools)
        server.tool_names = tuple(tool.name for tool in made)

    def _take_back(self, made: Dialled, old: Dialled | None) -> None:
        """Make the catalog what it was before a registration that came to nothing."""
        if old is None or old.remote is None or not old.tool_names:
            self._house.tools.unregister_server(made.namespace, made.registration.id)
        else:
            self._offer(old, old.tools)

    def _let_go(self, server: Dialled) -> None:
        """Stop keeping a server that is registered no more; its calls in flight may end."""
        keeper = self._keepers.pop(server, None)
        if keeper is not None:
            keeper.cancel()
        if self._tasks is not None and server.remote is not None:
            self._tasks.create_task(server.retire(self._closing))

    def _dial(self, server: Server) -> RemoteServer:
        """Make the connection of a server. Raises EndpointRefused, and InvalidRequest for secrets of TLS."""
        rules = _CONFIGURED if server.configured else self._dialling.rules
        has_tls = server.HasField("tls")
        link = Link(
            server_id=server.id,
            target=target(server.address, rules, has_tls=has_tls),
            tls=self._tls(server.tls) if has_tls else None,
            token=partial(self._dialling.secrets, server.token_ref) if server.token_ref else NO_TOKEN,
        )
        return RemoteServer(link, self._house.tools.validators)

    def _tls(self, tls: ServerTls) -> Tls:
        material: dict[str, bytes] = {}
        for field_name in ("ca_ref", "certificate_ref", "key_ref"):
            reference = getattr(tls, field_name)
            try:
                material[field_name] = self._dialling.secrets(reference).encode() if reference else b""
            except (LookupError, OSError, ValueError):
                raise InvalidRequest(f"tls.{field_name}", "names nothing that can be read") from None
        return Tls(material["ca_ref"], material["certificate_ref"], material["key_ref"], tls.server_name)

    async def _record(self, server: Dialled) -> None:
        body = server.registration.SerializeToString()
        put = Put(Record(server.namespace, KIND, server.name, body))
        await self._commit(Change(puts=(put, _tools_put(server))))

    async def _commit(self, change: Change) -> None:
        if isinstance(await self._house.log.commit(change), Full):
            raise StorageFull


def _registration(server: Server) -> Server:
    """What a caller says of a server, without what is the daemon's to say."""
    made = Server()
    made.CopyFrom(server)
    for name in _OUTPUT_ONLY:
        made.ClearField(name)  # type: ignore[arg-type]  # a name of a field, as above
    return made


def _may_replace(old: Dialled, asked: Server, owner: Owner, replace: bool) -> bool:
    """Whether nothing is to be done, since the same is registered. Raises ServerNameTaken."""
    if old.registration.configured:
        raise ServerNameTaken(old.name, "is in the configuration")
    if not owner.is_admin and old.registration.principal != owner.principal:
        raise ServerNameTaken(old.name, "is another principal's")
    if _registration(old.registration) == asked:
        return True
    if not replace:
        raise ServerNameTaken(old.name, "has another registration; replace it")
    return False


def _tools_put(server: Dialled) -> Put:
    body = ListToolsResponse(tools=server.tools).SerializeToString()
    return Put(Record(server.namespace, TOOLS_KIND, server.name, body))
