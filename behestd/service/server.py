"""The gRPC server of the daemon: all services, health and reflection, on TCP and Unix sockets.

Above it is `daemon`, which gives it the handlers by full method name and tells it when to start and to stop;
below it are `methods`, `listen`, `entrance`, `health` and `reflection`. An edge is bound when it is made,
so that a taken address is known before any work is done, answers from `start` on, and says NOT_SERVING before its
listeners close. It outlives its gRPC server: see `keep`. Beyond this machine it listens only with TLS and credentials.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from behestd.runtime.quotas import Quotas
from behestd.service import listen, reflection
from behestd.service.admission import Admission, anybody, never
from behestd.service.credentials import Credentials
from behestd.service.entrance import Entrance
from behestd.service.health import SERVICE as HEALTH_SERVICE
from behestd.service.health import Health
from behestd.service.methods import House, Router, wrap, wrap_all
from behestd.service.scopes import Caller, Load
from behestd.service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from behestd.service.audit import Trail
    from behestd.service.identity import Identity
    from behestd.service.listen import Address
    from behestd.service.methods import Authenticate, Handler, Observer
    from behestd.service.tls import Tls

logger = logging.getLogger(__name__)

DEFAULT_ADDRESS = "127.0.0.1:7717"
LOOK_SECONDS = 1.0
"""How often to look whether the gRPC server is still there."""
LEFT_SECONDS = 1.0
"""How long calls of one that is not may go on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an edge is made of. `handlers` are by full name, `/package.Service/Method`."""

    handlers: Mapping[str, Handler]
    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    settings: Settings = field(default_factory=Settings)
    credentials: Credentials = field(default_factory=Credentials)
    tls: Tls | None = None
    """TLS of every TCP address. None: plaintext, on this machine only."""
    authenticate: Authenticate | None = None
    """Knows callers instead of the credentials."""
    observers: Sequence[Observer] = ()
    trail: Trail | None = None
    """Records calls for the audit."""
    may_create: Callable[[Caller], None] = anybody
    quotas: Quotas | None = None
    """What callers may use. None: everything."""
    is_shedding: Callable[[], bool] = never
    """Whether new work is refused just now."""
    interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    has_reflection: bool | None = None
    """None: in local mode only."""

    @property
    def is_local(self) -> bool:
        """Tell whether this is local mode."""
        return is_local(self.addresses, self.credentials)


def is_local(addresses: Sequence[str], credentials: Credentials) -> bool:
    """Tell whether a daemon is in local mode: nobody else can reach it, and no credential is configured."""
    return credentials.is_empty and all(listen.parse(text).is_local for text in addresses)


class Edge:
    """A bound gRPC server. To be made inside a running loop; `start` and `stop` once each, in this order."""

    def __init__(self, plan: Plan) -> None:
        """Bind every address. Raises AddressUnusable and AddressRefused."""
        addresses = [listen.parse(text) for text in plan.addresses]
        for address in addresses:
            if not address.is_local:
                listen.check_open(address, has_tls=plan.tls is not None, has_credentials=not plan.credentials.is_empty)
        settings = plan.settings
        self.entrance = Entrance(plan, is_local=plan.is_local, look_seconds=settings.look_seconds)
        limits = {Load.WATCH: settings.watches, Load.LIST: settings.lists}
        self.admission = Admission(limits, plan.may_create, quotas=plan.quotas, is_shedding=plan.is_shedding)
        services = sorted({name.split("/")[1] for name in plan.handlers})
        self.health = Health(services)
        authenticate = plan.authenticate or self.identity.authenticate
        house = House(settings, self.admission, authenticate, plan.observers, self.entrance.open_calls, plan.trail)
        wrapped = wrap_all({**plan.handlers, **self.health.handlers()}, house)
        if plan.is_local if plan.has_reflection is None else plan.has_reflection:
            answer = reflection.Reflection((*services, HEALTH_SERVICE)).answer
            wrapped |= {name: wrap(name, reflection.method(), answer, house) for name in reflection.METHODS}
        self._router = Router(wrapped)
        self._interceptors = plan.interceptors
        self._options = settings.options()
        self._is_stopping = False
        self._server = self._made()
        self._bound = tuple(self._bind(address) for address in addresses)

    @property
    def identity(self) -> Identity:
        """Who callers are."""
        return self.entrance.identity

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, with the ports that were found."""
        return tuple(str(address) for address in self._bound)

    async def start(self) -> None:
        """Begin to answer. Health stays NOT_SERVING until `health.set_serving` is called."""
        await self._server.start()

    async def keep(self) -> None:
        """Serve until `stop`: a gRPC server that a client's bytes have ended is replaced within a second or so.

        grpc.aio ends its server, all of it, at a call whose path is no UTF-8. Calls that are open then have a second
        to end; watches are cut, and go on where they were when their clients resume them.
        """
        clock = asyncio.get_running_loop().time
        while True:
            self.entrance.look(clock())
            try:
                if not await self._server.wait_for_termination(LOOK_SECONDS):
                    return
            except UnicodeDecodeError:
                if self._is_stopping:
                    return
                logger.warning("a call that cannot be read ended the gRPC server, which is made anew")
                ended, self._server = self._server, self._made()
                self._bound = tuple(self._bind(address) for address in self._bound)
                await self._server.start()
                await ended.stop(LEFT_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """Say NOT_SERVING, close the listeners, let calls end for a while, then cut them. Idempotent."""
        self._is_stopping = True
        self.health.set_not_serving()
        await self._server.stop(grace_seconds)
        for address in self._bound:
            if address.path:
                listen.remove_socket(address.path)

    def _made(self) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=self._interceptors, options=self._options)
        server.add_generic_rpc_handlers((self._router,))
        return server

    def _bind(self, address: Address) -> Address:
        if address.path:
            listen.clear_stale_socket(address.path)
        try:
            credentials = None if address.path else self.entrance.port_credentials()
            if credentials is None:
                port = self._server.add_insecure_port(str(address))
            else:
                port = self._server.add_secure_port(str(address), credentials)
        except RuntimeError:
            raise listen.AddressUnusable(f"cannot listen on {address}: it is taken, or not of this machine") from None
        if address.path:
            listen.open_to_group(address.path)
            return address
        return listen.Address(host=address.host, port=port)
