"""The composition root and the life of the daemon: open, recover, serve, drain, stop.

Above: `cli`, which gives a plan and takes the exit code. Below: every room. `Daemon` is an async context manager, so
that a test has the same daemon in its own process. Order of the end: health NOT_SERVING, no new
runs, watches end with their resume points, what is in flight ends or is left for recovery, the store closes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from behest.v1.server_pb2 import Server
from behestd import enums
from behestd.blobs.blob import Blobs
from behestd.blobs.file import FileBlobs
from behestd.blobs.memory import MemoryBlobs
from behestd.context.catalog import Sources
from behestd.core.circuit import CircuitPolicy
from behestd.core.definition import Operator
from behestd.core.route import RoutePolicy
from behestd.log.log import Log
from behestd.log.memory import MemoryStore
from behestd.log.sqlite import SqliteStore
from behestd.log.store import CommitUnknown, Store
from behestd.providers.catalog import Catalog as Models
from behestd.providers.catalog import Snapshot
from behestd.providers.provider import ProviderTimeouts
from behestd.runtime import budget_start
from behestd.runtime.admission import Admission, Rules
from behestd.runtime.agents import Agents
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.budgets import Ledger
from behestd.runtime.budgets import Rules as Budgets
from behestd.runtime.children import Children
from behestd.runtime.cleaning import Cleaning
from behestd.runtime.clock import Clock, Ids, Rng, SystemClock
from behestd.runtime.context import Contexts
from behestd.runtime.dialled import Dialling
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.health import Endpoints
from behestd.runtime.house import House, Limits
from behestd.runtime.late import LateAnswers
from behestd.runtime.model_limits import Allowance
from behestd.runtime.orders import Orders
from behestd.runtime.passthrough import Passthrough
from behestd.runtime.performer import Performer
from behestd.runtime.registry import Registry
from behestd.runtime.supervisor import Supervisor
from behestd.runtime.tool_performer import ToolPerformer
from behestd.secret import Vault, parse
from behestd.service import listen
from behestd.service.daemon_info import Controls
from behestd.service.handlers import Parts, handlers
from behestd.service.scopes import Load
from behestd.service.server import DEFAULT_ADDRESS, Edge
from behestd.service.server import Plan as EdgePlan
from behestd.service.settings import Settings as EdgeSettings
from behestd.service.watch import Watches
from behestd.tools.catalog import Catalog as Tools
from behestd.tools.schema import Validators
from behestd.wire import endpoint
from behestd.wire.remote_channel import Resolve, system_resolve

logger = structlog.get_logger(__name__)

EXIT_OK = 0
EXIT_STORE_FAILED = 70
GC_THRESHOLDS = (20_000, 20, 50)
"""What a run allocates dies young and without cycles; the default of 700 looks at it dozens of times."""
SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter while another waits for it. With the default of 5 ms a busy loop holds up the
log's writer at each of its statements."""


SETTLE_SECONDS = 1.0
"""How long the start waits for tool servers to be reached."""


def read_secret(reference: str) -> str:
    """Read the secret that a reference names. Raises LookupError and ValueError."""
    return Vault(os.environ).read(parse(reference)).reveal()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a daemon is made of. `data_dir` None keeps everything in memory."""

    models: Snapshot
    tools: Callable[[Validators], Tools] = Tools
    data_dir: Path | None = None
    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    limits: Limits = field(default_factory=Limits)
    operator: Operator = field(default_factory=Operator)
    rules: Rules = field(default_factory=Rules)
    retries: RoutePolicy = field(default_factory=lambda: RoutePolicy(()))
    model_timeouts: ProviderTimeouts = field(default_factory=ProviderTimeouts)
    edge: EdgeSettings = field(default_factory=EdgeSettings)
    servers: Sequence[Server] = ()
    """Tool servers of the configuration."""
    endpoints: endpoint.AllowList = field(default_factory=endpoint.AllowList)
    """Addresses that callers may register."""
    resolve: Resolve = system_resolve
    """Looks up the names of servers."""
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Models to try after a model or alias, by its name."""
    circuits: CircuitPolicy = field(default_factory=CircuitPolicy)
    model_limits: Mapping[str, Allowance] = field(default_factory=dict)
    """The operator's limits of models, by id."""
    budgets: Budgets = field(default_factory=Budgets)
    """The operator's budgets of namespaces."""
    sources: Sources = field(default_factory=Sources)
    """Where context comes from."""
    secrets: Callable[[str], str] = read_secret
    heartbeat_seconds: float = 15.0
    drain_seconds: float = 25.0


class Daemon:
    """A running daemon: entered, it serves; left, it has drained and closed."""

    def __init__(self, plan: Plan, clock: Clock | None = None) -> None:
        self.plan = plan
        self._clock = clock or SystemClock()
        self._exit = AsyncExitStack()
        self._stopping = asyncio.Event()
        self._is_ready = asyncio.Event()
        self._has_failed = False
        self._drain_seconds = plan.drain_seconds
        self._drain_end_ns = 0

    async def __aenter__(self) -> Self:
        """Open, recover and serve. Raises what opening raises, with everything undone."""
        async with AsyncExitStack() as stack:
            await self._build(stack)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain and close."""
        await self._exit.__aexit__(kind, error, trace)

    async def _build(self, stack: AsyncExitStack) -> None:
        plan = self.plan
        validators = Validators()
        store, blobs = await _open(plan.data_dir)
        stack.push_async_callback(store.close)
        stack.push_async_callback(blobs.close)
        self.log = await Log.open(store)
        self.house = House(
            log=self.log,
            models=Models(plan.models),
            tools=plan.tools(validators),
            blobs=blobs,
            clock=self._clock,
            ids=Ids(),
            rng=Rng(),
            replica=Ids().make("rep"),
            validate=validators.arguments,
            ledger=Ledger(self._clock, plan.budgets),
            limits=plan.limits,
            operator=plan.operator,
            retries=plan.retries,
            model_timeouts=plan.model_timeouts,
            endpoints=Endpoints(self._clock, plan.circuits, plan.model_limits),
            fallbacks=plan.fallbacks,
            sources=plan.sources,
        )
        await self.house.circuits.load(store, self._clock.now_ns())
        await budget_start.load(self.house.ledger, store, self._clock.now_ns())
        artifacts = Artifacts(self.log, blobs, self._clock, self.house.ids)
        tools = ToolPerformer(self.house.tools, artifacts, self._clock, plan.limits.tool_calls)
        agents = Agents(store)
        orders = Orders(self.house, agents)
        children = Children(self.house, orders, tools)
        self.contexts = Contexts(plan.sources, self._clock)
        performer = Performer(self.house, tools, children, self.contexts)
        self.supervisor = Supervisor(self.house, performer)
        children.serve(self.supervisor)
        self.house.kin.serve(self.supervisor.runs, plan.limits.pending_approvals)
        self.watches = Watches(store, plan.heartbeat_seconds)
        self.calls = DirectCalls(self.house)
        self.cleaning = Cleaning(self.house, artifacts)
        self.late = LateAnswers(self.supervisor, tools)
        self.registry = self._registry()
        await self.registry.load()
        parts = self._parts(artifacts, agents, orders)
        self.edge = Edge(EdgePlan(handlers(parts), plan.addresses, plan.edge))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        tasks.create_task(self._write())
        tasks.create_task(self.supervisor.run(self._is_ready.set))
        tasks.create_task(self.calls.run())
        tasks.create_task(self.registry.run())
        tasks.create_task(self.late.run())
        tasks.create_task(self.cleaning.run())
        stack.push_async_callback(self._stop)
        await artifacts.sweep()
        await self._is_ready.wait()
        await self.registry.settled(SETTLE_SECONDS)
        await self.edge.start()
        tasks.create_task(self.edge.keep())
        self.edge.health.set_serving()

    def _registry(self) -> Registry:
        rules = endpoint.Rules(allow_loopback=self._is_local, allowed=self.plan.endpoints)
        dialling = Dialling(self.plan.secrets, rules, self.plan.servers, self.plan.resolve, self.late.keep)
        registry = Registry(self.house, dialling, self.late.came_back)
        self.contexts.serve(registry)
        return registry

    def _parts(self, artifacts: Artifacts, agents: Agents, orders: Orders) -> Parts:
        plan = self.plan
        return Parts(
            house=self.house,
            supervisor=self.supervisor,
            orders=orders,
            agents=agents,
            artifacts=artifacts,
            admission=Admission(plan.rules, self._clock),
            watches=self.watches,
            edge=plan.edge,
            registry=self.registry,
            calls=self.calls,
            passthrough=Passthrough(self.house),
            contexts=self.contexts,
            controls=Controls(
                start_ns=self._clock.now_ns(),
                heartbeat_seconds=plan.heartbeat_seconds,
                is_local=self._is_local,
                watchers=lambda: self.edge.admission.statistics().in_flight[Load.WATCH],
                drain=self.drain,
            ),
        )

    @property
    def _is_local(self) -> bool:
        return all(listen.parse(address).is_local for address in self.plan.addresses)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, with the ports that were found."""
        return self.edge.addresses

    async def _write(self) -> None:
        """Commit until the log is closed; a commit that is not known stops the daemon."""
        try:
            await self.log.run()
        except CommitUnknown:
            logger.exception("store failed")
            self._has_failed = True
            self._stopping.set()

    def stop(self) -> None:
        """Begin to stop."""
        self._stopping.set()

    def drain(self, seconds: float | None = None) -> int:
        """Begin to stop, within so many seconds (None: as planned). Gives when that is over, in unix nanoseconds.

        What has begun goes on unchanged.
        """
        if not self._drain_end_ns:
            self._drain_seconds = self.plan.drain_seconds if seconds is None else seconds
            self._drain_end_ns = self._clock.now_ns() + int(self._drain_seconds * 1e9)
            self.stop()
        return self._drain_end_ns

    async def stopped(self) -> int:
        """Wait until the daemon is to stop; gives the exit code."""
        await self._stopping.wait()
        return EXIT_STORE_FAILED if self._has_failed else EXIT_OK

    async def _stop(self) -> None:
        """Drain: see the module's docstring."""
        self.edge.health.set_not_serving()
        seconds = 0.0 if self._has_failed else self._drain_seconds
        self.watches.drain()
        self.log.changes.wake()
        self.calls.refuse()
        self.registry.drain()
        end = time.monotonic() + seconds
        runs = await self.supervisor.drain(seconds)
        logger.info("drained", runs=runs)
        await self.calls.drain(max(end - time.monotonic(), 0.0))
        self.registry.close()
        self.late.close()
        self.cleaning.close()
        await self.edge.stop(1.0)
        self.log.close()


async def _open(data_dir: Path | None) -> tuple[Store, Blobs]:
    if data_dir is None:
        return MemoryStore(), MemoryBlobs()
    store = await SqliteStore.open(data_dir)
    return store, FileBlobs(data_dir / "blobs")


async def serve(plan: Plan, ready: Callable[[Sequence[str]], None]) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends the drain at once. Gives the exit code."""
    sys.setswitchinterval(SWITCH_SECONDS)
    enums.quicken()
    with _signals() as asked:
        async with Daemon(plan) as daemon:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            ready(daemon.addresses)
            asked(daemon.stop)
            return await daemon.stopped()


@contextmanager
def _signals() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Listen for the signals that end the process, from before the daemon is built."""
    loop = asyncio.get_running_loop()
    came: list[signal.Signals] = []
    stop: list[Callable[[], None]] = []
    task = asyncio.current_task()

    def come(number: signal.Signals) -> None:
        came.append(number)
        logger.info("stopping", signal=number.name)
        if stop and len(came) == 1:
            stop[0]()
        elif task is not None:
            task.cancel()

    def listen(callback: Callable[[], None]) -> None:
        stop.append(callback)
        if came:
            callback()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, come, number)
    try:
        yield listen
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
