"""What a daemon is made of: its components, what each stands on, and how each begins and ends.

Above: `daemon`, which starts and stops them by `lifecycle`. Below: every room. The order of the start: data, the rooms
of the runtime, the addresses, which are taken before any work is done, then work, then answers. Reversed, that is the
order of the end: health NOT_SERVING, watches end with their resume points, what is in flight ends or is left for
recovery, the listeners close, the log commits its last words, the store closes.
"""

from __future__ import annotations

from typing import Any

import structlog

from behestd import beginnings
from behestd.audit_trail import ReloadTrail
from behestd.blobs.blob import Blobs
from behestd.blobs.file import FileBlobs
from behestd.blobs.memory import MemoryBlobs
from behestd.components import (
    AUDIT,
    BLOBS,
    CALLS,
    CLEANING,
    EDGE,
    EXPORTS,
    HOUSE,
    LATE,
    LOAD,
    LOG,
    PROBES,
    PROVIDERS,
    RELOADS,
    ROOMS,
    RUNS,
    SERVERS,
    SERVING,
    STORE,
    TELEMETRY,
    Life,
    Rooms,
    Serving,
)
from behestd.lifecycle import Component, Scope
from behestd.log.audit_writer import AuditLog
from behestd.log.log import Log
from behestd.log.memory import MemoryStore
from behestd.log.sqlite import SqliteStore
from behestd.log.store import CommitUnknown, Store
from behestd.plan import Plan
from behestd.providers.catalog import Catalog as Models
from behestd.reload import Reloading
from behestd.runtime import budget_start, overload
from behestd.runtime.admission import Admission
from behestd.runtime.agents import Agents
from behestd.runtime.approvals import Approvals
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.budgets import Ledger
from behestd.runtime.children import Children
from behestd.runtime.cleaning import Cleaning
from behestd.runtime.clock import Clock, Ids, Rng
from behestd.runtime.context import Contexts
from behestd.runtime.dialled import Dialling
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.house import House
from behestd.runtime.intake import Intake
from behestd.runtime.late import LateAnswers
from behestd.runtime.orders import Orders
from behestd.runtime.passthrough import Passthrough
from behestd.runtime.performer import Performer
from behestd.runtime.probing import Probing
from behestd.runtime.quotas import Quotas
from behestd.runtime.registry import Registry
from behestd.runtime.slots import Slots
from behestd.runtime.supervisor import Supervisor
from behestd.runtime.tool_performer import ToolPerformer
from behestd.service.audit import Trail
from behestd.service.daemon_info import Controls
from behestd.service.handlers import Parts, handlers
from behestd.service.scopes import Load
from behestd.service.server import Edge
from behestd.service.server import Plan as EdgePlan
from behestd.service.telemetry import Telemetry
from behestd.service.watch import Watches
from behestd.tools.schema import Validators
from behestd.wire import endpoint

logger = structlog.get_logger(__name__)

AT_ONCE = 0.0
"""The time to stop of what may be cut anywhere, and must not hold up the drain."""


class Composition:
    """Makes the components of a daemon."""

    def __init__(self, plan: Plan, clock: Clock, life: Life) -> None:
        self._plan = plan
        self._clock = clock
        self._life = life

    def components(self) -> tuple[Component[Any], ...]:
        """All components, each beside what it stands on. Where nothing else says so, they start in this order."""
        return (
            Component(TELEMETRY, self._make_telemetry, stop=beginnings.close_telemetry),
            Component(STORE, self._open_store, stop=beginnings.close_store, probe=beginnings.probe_store),
            Component(BLOBS, self._open_blobs, (STORE,), stop=beginnings.close_blobs),
            Component(LOG, self._open_log, (STORE,), stop=beginnings.close),
            Component(AUDIT, self._open_audit, (STORE,), stop=beginnings.close, probe=AuditLog.probe),
            Component(HOUSE, self._make_house, (TELEMETRY, LOG, BLOBS)),
            Component(PROVIDERS, beginnings.close_what_is_due, (HOUSE,), stop=beginnings.close),
            Component(ROOMS, self._make_rooms, (TELEMETRY, HOUSE)),
            Component(EDGE, self._bind, (TELEMETRY, AUDIT, HOUSE, ROOMS), stop=beginnings.close_edge),
            Component(EXPORTS, beginnings.export, (TELEMETRY, HOUSE, EDGE)),
            Component(LOAD, beginnings.look_at_load, (HOUSE,), stop=beginnings.close),
            Component(CLEANING, beginnings.clean, (ROOMS, EDGE), stop=beginnings.close),
            Component(LATE, beginnings.wait_for_late, (ROOMS, EDGE), stop=beginnings.close),
            Component(
                SERVERS,
                beginnings.keep_servers,
                (ROOMS, EDGE, LATE),
                quiet=Registry.drain,
                stop=beginnings.close,
            ),
            Component(
                CALLS, beginnings.take_calls, (ROOMS, EDGE, SERVERS), quiet=DirectCalls.refuse, stop=DirectCalls.drain
            ),
            Component(RUNS, beginnings.supervise, (ROOMS, EDGE, SERVERS, CALLS), stop=beginnings.drain_runs),
            Component(
                RELOADS,
                self._reload,
                (TELEMETRY, AUDIT, HOUSE, ROOMS, EDGE, RUNS),
                stop=beginnings.close,
                stop_seconds=AT_ONCE,
            ),
            Component(SERVING, self._answer, (LOG, ROOMS, EDGE, SERVERS, RUNS, RELOADS), quiet=Serving.end),
            Component(PROBES, self._probe, (SERVING,), stop=beginnings.close, stop_seconds=AT_ONCE),
        )

    async def _make_telemetry(self, scope: Scope) -> Telemetry:
        return Telemetry(self._plan.telemetry, self._clock, lambda: Ids().make("span"), self._plan.logs)

    # --- data ---

    async def _open_store(self, scope: Scope) -> Store:
        return MemoryStore() if self._plan.data_dir is None else await SqliteStore.open(self._plan.data_dir)

    async def _open_blobs(self, scope: Scope) -> Blobs:
        return MemoryBlobs() if self._plan.data_dir is None else FileBlobs(self._plan.data_dir / "blobs")

    async def _open_log(self, scope: Scope) -> Log:
        log = await Log.open(scope[STORE])
        scope.spawn(self._write(log))
        return log

    async def _open_audit(self, scope: Scope) -> AuditLog:
        # It stands on the store, which keeps a second daemon away from the directory.
        audit = AuditLog(self._plan.data_dir, self._clock.now_ns)
        await audit.open()
        scope.spawn(audit.run())
        return audit

    async def _write(self, log: Log) -> None:
        """Commit until the log is closed; a commit that is not known stops the daemon."""
        try:
            await log.run()
        except CommitUnknown:
            logger.exception("store failed")
            self._life.fail()

    # --- the runtime ---

    async def _make_house(self, scope: Scope) -> House:
        plan, validators = self._plan, Validators(self._plan.schemas)
        models, telemetry = Models(plan.models), scope[TELEMETRY]
        house = House(
            log=scope[LOG],
            models=models,
            tools=plan.tools(validators),
            blobs=scope[BLOBS],
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
            endpoints=telemetry.endpoints(self._clock, plan.circuits, plan.model_limits, models),
            fallbacks=plan.fallbacks,
            sources=plan.sources,
            intake=self._intake(scope[LOG].store),
            listener=telemetry.listener,
        )
        await house.circuits.load(house.log.store, self._clock.now_ns())
        await house.switch.load(house.log.store, self._clock.now_ns())
        await budget_start.load(house.ledger, house.log.store, self._clock.now_ns())
        return house

    def _intake(self, store: Store) -> Intake:
        plan, clock = self._plan, self._clock
        place = plan.data_dir
        sources = overload.Sources(
            statistics=store.statistics,
            memory_bytes=overload.resident_bytes,
            disk_bytes=(lambda: overload.free_bytes(place)) if place is not None else lambda: None,
        )
        most_runs = plan.limits.active_runs + plan.limits.queued_runs
        return Intake(most_runs, Quotas(plan.quotas, clock), overload.Overload(plan.overload, sources))

    async def _make_rooms(self, scope: Scope) -> Rooms:
        house, plan = scope[HOUSE], self._plan
        artifacts = Artifacts(house.log, house.blobs, self._clock, house.ids)
        slots = Slots(plan.limits.tool_calls, house.intake.quotas.share_of)
        tools = ToolPerformer(house.tools, artifacts, self._clock, slots)
        agents = Agents(house.log.store)
        orders = Orders(house, agents)
        children = Children(house, orders, tools)
        contexts = Contexts(plan.sources, self._clock)
        supervisor = Supervisor(house, Performer(house, tools, children, contexts))
        children.serve(supervisor)
        house.kin.serve(supervisor.runs, plan.limits.pending_approvals)
        late = LateAnswers(supervisor, tools)
        registry = self._registry(house, late)
        contexts.serve(registry)
        await registry.load()
        allows_own = plan.is_local or plan.operator.own_approvals
        return Rooms(
            artifacts=artifacts,
            agents=agents,
            orders=orders,
            tools=tools,
            contexts=contexts,
            supervisor=supervisor,
            approvals=Approvals(house.log.store, supervisor, allows_own=allows_own),
            inputs=Admission(plan.rules, self._clock),
            watches=Watches(house.log.store, plan.heartbeat_seconds),
            calls=scope[TELEMETRY].calls(house),
            cleaning=Cleaning(house, artifacts, self._plan.retention),
            late=late,
            registry=registry,
        )

    def _registry(self, house: House, late: LateAnswers) -> Registry:
        rules = endpoint.Rules(allow_loopback=self._plan.is_local, allowed=self._plan.endpoints)
        dialling = Dialling(self._plan.secrets, rules, self._plan.servers, self._plan.resolve, late.keep)
        return Registry(house, dialling, late.came_back)

    # --- the edge ---

    async def _bind(self, scope: Scope) -> Edge:
        plan, house, rooms = self._plan, scope[HOUSE], scope[ROOMS]

        def watchers() -> int:
            return edge.admission.statistics().in_flight[Load.WATCH]

        parts = Parts(
            house=house,
            supervisor=rooms.supervisor,
            orders=rooms.orders,
            agents=rooms.agents,
            artifacts=rooms.artifacts,
            approvals=rooms.approvals,
            admission=rooms.inputs,
            watches=rooms.watches,
            edge=plan.edge,
            registry=rooms.registry,
            calls=rooms.calls,
            passthrough=Passthrough(house),
            contexts=rooms.contexts,
            controls=Controls(
                start_ns=self._clock.now_ns(),
                heartbeat_seconds=lambda: rooms.watches.heartbeat_seconds,
                is_local=plan.is_local,
                watchers=watchers,
                data_dir=plan.data_dir,
                drain=self._life.drain,
                statuses=self._life.statuses,
                reloading=self._life.reloading,
            ),
        )
        edge = Edge(
            EdgePlan(
                handlers(parts),
                plan.addresses,
                plan.edge,
                credentials=plan.credentials,
                tls=plan.tls,
                has_reflection=plan.has_reflection,
                quotas=house.intake.quotas,
                is_shedding=house.intake.is_shedding,
                observers=scope[TELEMETRY].observers,
                trail=Trail(scope[AUDIT]),
                interceptors=scope[TELEMETRY].interceptors,
            )
        )
        return edge

    # --- answers ---

    async def _reload(self, scope: Scope) -> Reloading:
        self._life.reloading.witnesses.append(ReloadTrail(scope[AUDIT]))
        return await beginnings.reload_when_asked(scope, self._life)

    async def _answer(self, scope: Scope) -> Serving:
        return await beginnings.answer(scope, self._life)

    async def _probe(self, scope: Scope) -> Probing:
        return await beginnings.probe(scope, self._life)
