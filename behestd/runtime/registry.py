"""The registry of servers: durable registrations of those that are dialled and of those that attach themselves.

Above: RegistryService, `attached_streams`, and the daemon, which loads it before runs are recovered, so that what they
pinned is there. Below: records of the store, `offers`, which keeps the catalogs, `dialled` and `attached`. Servers of
the configuration are registered likewise, cannot be changed by calls, and have their names before all others. A
registration takes effect wholly or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Set

import structlog

from behest.v1.registry_service_pb2 import AttachHello
from behest.v1.server_pb2 import Server, ServerConnection
from behestd.core.times import timestamp
from behestd.errors import (
    BehestError,
    Draining,
    Exhausted,
    Internal,
    ServerNotFound,
    StorageFull,
)
from behestd.log.store import Change, Full
from behestd.runtime.attached import Attached
from behestd.runtime.dialled import Dialled, Dialling, Listing
from behestd.runtime.house import House
from behestd.runtime.offers import KIND, MODELS_KIND, TOOLS_KIND, Offers, deletes_of, listing_of, puts_of
from behestd.runtime.registration import (
    CONFIGURED_NAMESPACE,
    Owner,
    Registered,
    ServerNameTaken,
    asked_of,
    check_owner,
    check_removal,
    configured_of,
    kept_of,
    may_replace,
    with_offers_of,
)
from behestd.runtime.whole import whole
from behestd.tools.attached import AttachedServer
from behestd.tools.tool import ToolFailure

logger = structlog.get_logger(__name__)

MAX_SERVERS = 1_000
"""Most servers of a namespace."""
_ALL = 1_000_000
_ATTACHED = ServerConnection.SERVER_CONNECTION_ATTACHED

CameBack = Callable[[str, str, Set[str]], None]
"""Gets namespace, id of a server and keys."""


class Registry:
    """All registrations. `load`, then `run` for as long as the daemon lives; everything else while that goes on."""

    def __init__(self, house: House, dialling: Dialling, came_back: CameBack) -> None:
        """`came_back` hears of each server that attaches, and of the keys of calls that it holds."""
        self.came_back = came_back
        self._house = house
        self.dialling = dialling
        self._offers = Offers(house)
        self._servers: dict[str, dict[str, Registered]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._keepers: dict[Dialled, asyncio.Task[None]] = {}
        self._closing = asyncio.Event()
        self._is_draining = False
        # A registration waits for its server in the middle, and no other one may come between. An owner with an inbox
        # would be the same lock with a queue.
        self.lock = asyncio.Lock()

    # --- life ---

    async def load(self) -> None:
        """Take up what is configured and what is recorded, with what was last listed. Nothing is dialled yet."""
        for server in self.dialling.configured:
            await self._load(CONFIGURED_NAMESPACE, configured_of(server))
        for record in await self._house.log.store.records("", KIND, limit=_ALL):
            server = Server.FromString(record.body)
            if server.name in self._servers.get(record.namespace, {}):
                logger.warning("registration gives way to the configuration", server=server.name)
            else:
                await self._load(record.namespace, server)

    async def _load(self, namespace: str, server: Server) -> None:
        bodies = []
        for kind in (TOOLS_KIND, MODELS_KIND):
            record = await self._house.log.store.record(namespace, kind, server.name, 0)
            bodies.append(record.body if record is not None else b"")
        if server.connection == _ATTACHED:
            made: Registered = self._attached(namespace, server, bodies[0])
        else:
            made = self._dialled(namespace, server, listing_of(*bodies))
        self._servers.setdefault(namespace, {})[server.name] = made

    def _dialled(self, namespace: str, server: Server, listing: Listing) -> Dialled:
        """Take up a dialled server, with what it listed last."""
        try:
            made = Dialled(namespace, server, self.dialling.dial(server, self._house.tools.validators), listing)
            self._offers.put(made)
        except BehestError as error:
            logger.warning("server not taken up", server=server.name, reason=error.reason)
            made = Dialled(namespace, server, None, listing)
            made.disconnect(error)
        return made

    def _attached(self, namespace: str, server: Server, body: bytes = b"") -> Attached:
        """Make an attached server, with what it said last; one that said something has the window to come back."""
        house = self._house
        remote = AttachedServer(house.tools.validators, house.limits.reconnect_seconds)
        made = Attached(namespace, server, remote, self._delist, house.clock.now_ns)
        if body:
            made.remember(body)
            try:
                self._offers.put(made)
            except BehestError as error:
                logger.warning("offers of a server not taken up", server=server.name, reason=error.reason)
                made.error = error
        return made

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
            await server.close()

    async def settled(self, seconds: float) -> None:
        """Wait until every server was reached or was not, but not longer than that.

        From then on attached servers can come back, and their windows are open.
        """
        await self.tried(seconds)
        for server in self._all():
            if isinstance(server, Attached):
                server.open_window(self._house.limits.reconnect_seconds)

    async def tried(self, seconds: float) -> None:
        """Wait until every server was reached or was not, but not longer than that."""
        try:
            async with asyncio.timeout(seconds):
                for server in list(self._all()):
                    await server.tried.wait()
        except TimeoutError:
            logger.warning("some servers are not reached yet")

    def drain(self) -> None:
        """Attach no more servers, and send no more calls to those that are attached. Idempotent."""
        self._is_draining = True
        for server in self._all():
            if isinstance(server, Attached):
                server.drain()

    def close(self) -> None:
        """Let the servers go. Idempotent."""
        self._closing.set()

    def _keep(self, server: Registered) -> None:
        if isinstance(server, Dialled) and server.remote is not None and self._tasks is not None:
            self._keepers[server] = self._tasks.create_task(self._keep_going(server))

    async def _keep_going(self, server: Dialled) -> None:
        try:
            await server.keep(self._learn, self._house.clock, self._house.rng)
        except Exception:
            # The other servers share a task group with this one.
            logger.exception("server not kept, by a fault", server=server.name)
            server.disconnect(Internal("RUNTIME_INTERNAL", "a fault of the daemon; its log says more"))

    def _all(self) -> Iterator[Registered]:
        return (server for servers in self._servers.values() for server in servers.values())

    # --- reloading ---

    def prepare(self, dialling: Dialling) -> Callable[[], None]:
        """Dial other servers of the configuration, under the lock; what is returned puts them in the place of those.

        A server of which nothing has changed stays as it is. Raises EndpointRefused, and InvalidRequest for TLS.
        """
        there = self._servers.setdefault(CONFIGURED_NAMESPACE, {})
        wanted = {server.name: configured_of(server) for server in dialling.configured}
        made: list[Dialled] = []
        for name, server in wanted.items():
            old, link = there.get(name), dialling.link(server)
            if not (isinstance(old, Dialled) and old.is_as(server, link)):
                remote = dialling.connect(link, self._house.tools.validators)
                listing = old.listing if isinstance(old, Dialled) else Listing()
                made.append(Dialled(CONFIGURED_NAMESPACE, server, remote, listing))
        gone = [name for name, old in there.items() if old.registration.configured and name not in wanted]

        def swap() -> None:
            self.dialling = dialling
            for name in (*gone, *(each.name for each in made)):
                if (old := there.pop(name, None)) is not None:
                    self._offers.remove(old)
                    self._let_go(old)
            for each in made:
                there[each.name] = each
                self._take_up(each)
                self._keep(each)

        return swap

    def _take_up(self, server: Dialled) -> None:
        """Offer what a server listed last, if that can be."""
        try:
            self._offers.put(server)
        except BehestError as error:
            logger.warning("offers of a server not taken up", server=server.name, reason=error.reason)
            server.error = error

    # --- finding ---

    def find(self, namespace: str, server_id: str) -> Registered:
        """The server of that id. Raises ServerNotFound."""
        for server in self._servers.get(namespace, {}).values():
            if server.registration.id == server_id:
                return server
        raise ServerNotFound(server_id)

    def names(self, namespace: str) -> list[str]:
        """The names of all servers, ascending."""
        return sorted(self._servers.get(namespace, {}))

    def named(self, namespace: str, name: str) -> Registered | None:
        """The server of that name."""
        return self._servers.get(namespace, {}).get(name)

    # --- changing ---

    async def register(self, namespace: str, wanted: Server, owner: Owner, *, replace: bool) -> tuple[Registered, bool]:
        """Register a server, durably, and reach it if possible. Whether the same registration was there already.

        Raises ServerNameTaken, EndpointRefused, InvalidRequest and ToolNameTaken of its tools, Exhausted, StorageFull.
        """
        async with self.lock:
            old = self.named(namespace, wanted.name)
            asked = asked_of(wanted)
            if old is not None and may_replace(old, asked, owner, replace):
                return old, True
            self._stamp(namespace, asked, old, owner)
            if asked.connection == _ATTACHED:
                return await self._register_attached(namespace, asked, old), False
            remote = self.dialling.dial(asked, self._house.tools.validators)
            made = Dialled(namespace, asked, remote, old.listing if isinstance(old, Dialled) else Listing())
            try:
                await self._reach(made)
                await whole(self._enter(made, old))
            except BaseException:
                if self.named(namespace, made.name) is not made:
                    self._offers.restore(made, old)
                    await made.close()
                raise
            return made, False

    async def _register_attached(self, namespace: str, asked: Server, old: Registered | None) -> Attached:
        """Register a server that attaches itself; one that is attached goes on under its new registration."""
        if not isinstance(old, Attached):
            made = self._attached(namespace, asked)
            await whole(self._enter(made, old))
            return made
        before, old.registration = old.registration, asked
        try:
            if old.is_offered:
                self._offers.put(old)
            await whole(self._record(old))
        except Exception:
            old.registration = before
            self._offers.restore(old, old)
            raise
        return old

    async def _enter(self, made: Registered, old: Registered | None) -> None:
        """Record a server, and keep it in the place of another one."""
        await self._record(made)
        self._servers.setdefault(made.namespace, {})[made.name] = made
        if old is not None and old is not made:
            if not made.is_offered:
                self._offers.remove(old)
            self._let_go(old)
        self._keep(made)

    async def attach(self, namespace: str, hello: AttachHello, owner: Owner) -> Attached:
        """Register a server by its hello, if it is not, and put what it serves in place of what it served before.

        Raises Draining, ServerNameTaken, InvalidRequest and ToolNameTaken of its tools, Exhausted, StorageFull.
        """
        async with self.lock:
            if self._is_draining:
                raise Draining
            old = self.named(namespace, hello.server_name)
            if old is None:
                asked = Server(name=hello.server_name, connection=_ATTACHED)
                self._stamp(namespace, asked, None, owner)
                server = self._attached(namespace, asked)
            elif isinstance(old, Attached):
                check_owner(old, owner)
                server = old
            else:
                raise ServerNameTaken(old.name, "is that of a server that is dialled")
            before = server.hello, server.registration
            server.hello, server.registration = kept_of(hello), with_offers_of(server.registration, hello)
            is_new = before != (server.hello, server.registration)
            try:
                if is_new or not server.is_offered:
                    self._offers.put(server)
                if old is None or is_new:
                    await whole(self._enter(server, old))
            except asyncio.CancelledError:
                server.missed(self._house.limits.reconnect_seconds)
                raise
            except Exception:
                server.hello, server.registration = before
                self._offers.restore(server, old)
                raise
            return server

    def _stamp(self, namespace: str, asked: Server, old: Registered | None, owner: Owner) -> None:
        """Write into a registration what the daemon says of it. Raises Exhausted."""
        if old is None and len(self._servers.get(namespace, {})) >= MAX_SERVERS:
            raise Exhausted("RUNTIME_OVERLOADED", f"there are {MAX_SERVERS} servers", limit=MAX_SERVERS)
        now = timestamp(self._house.clock.now_ns())
        asked.id = old.registration.id if old is not None else self._house.ids.make("srv")
        asked.principal = owner.principal
        asked.create_time.CopyFrom(old.registration.create_time if old is not None else now)
        asked.update_time.CopyFrom(now)

    async def unregister(self, namespace: str, server_id: str, owner: Owner) -> None:
        """Remove a registration. No error when there is none. Raises WrongState for a configured one, Forbidden."""
        async with self.lock:
            servers = self._servers.get(namespace, {})
            server = next((server for server in servers.values() if server.registration.id == server_id), None)
            if server is None:
                return
            check_removal(server, owner)
            await whole(self._strike(server))

    async def _strike(self, server: Registered) -> None:
        """Delete what is recorded of a server, and let it go."""
        await self._commit(Change(deletes=deletes_of(server.namespace, server.name)))
        del self._servers[server.namespace][server.name]
        self._offers.remove(server)
        self._let_go(server)

    async def _reach(self, made: Dialled) -> None:
        """Dial a new registration and take what it lists; one that is not reached keeps what was last listed."""
        try:
            listing = await made.look()
        except ToolFailure as failure:
            made.failed(failure)
            self._offers.put(made)
            return
        self._offers.put(made, listing)
        made.know()
        made.reached(self._house.clock.now_ns())

    async def _learn(self, server: Dialled, listing: Listing) -> None:
        """Take what a server lists now, if that has changed."""
        async with self.lock:
            if self.named(server.namespace, server.name) is not server:
                return
            is_known = listing == server.listing
            is_met = server.know()
            if not is_known or not server.is_offered:
                self._offers.put(server, listing)
            if not is_known or is_met:
                await self._record(server)

    def _delist(self, server: Attached) -> None:
        """List nothing of a server any more that did not come back."""
        if self.named(server.namespace, server.name) is server:
            self._offers.remove(server)

    def _let_go(self, server: Registered) -> None:
        """Stop keeping a server that is registered no more; its calls in flight may end."""
        keeper = self._keepers.pop(server, None) if isinstance(server, Dialled) else None
        if keeper is not None:
            keeper.cancel()
        if self._tasks is not None and server.remote is not None:
            self._tasks.create_task(server.retire(self._closing))

    async def _record(self, server: Registered) -> None:
        await self._commit(Change(puts=tuple(puts_of(server))))

    async def _commit(self, change: Change) -> None:
        if isinstance(await self._house.log.commit(change), Full):
            raise StorageFull
