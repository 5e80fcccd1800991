"""The names of a daemon's components, each with the type of its value, and the values that are made for them alone.

Above: `composition`, which declares the components, and whoever plugs one in. Below: every room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from behestd.blobs.blob import Blobs
from behestd.lifecycle import Handle, Probe, Status
from behestd.log.audit_writer import AuditLog
from behestd.log.log import Log
from behestd.log.store import Store
from behestd.providers.leases import Leases
from behestd.reload import Reloading
from behestd.runtime.admission import Admission
from behestd.runtime.agents import Agents
from behestd.runtime.approvals import Approvals
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.cleaning import Cleaning
from behestd.runtime.context import Contexts
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.house import House
from behestd.runtime.late import LateAnswers
from behestd.runtime.orders import Orders
from behestd.runtime.overload import Overload
from behestd.runtime.probing import Probing
from behestd.runtime.registry import Registry
from behestd.runtime.supervisor import Supervisor
from behestd.runtime.tool_performer import ToolPerformer
from behestd.service.server import Edge
from behestd.service.telemetry import Telemetry
from behestd.service.watch import Watches


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms of the runtime, made and not yet at work."""

    artifacts: Artifacts
    agents: Agents
    orders: Orders
    tools: ToolPerformer
    contexts: Contexts
    supervisor: Supervisor
    approvals: Approvals
    inputs: Admission
    """Which inputs are taken."""
    watches: Watches
    calls: DirectCalls
    cleaning: Cleaning
    late: LateAnswers
    registry: Registry


@dataclass(slots=True)
class Serving:
    """Answers, from when everything else is there. What it says of the daemon's health goes by the components'."""

    edge: Edge
    watches: Watches
    log: Log
    problems: Callable[[], Mapping[str, str]]
    """What is wrong with components, by name."""
    has_ended: bool = field(default=False, init=False)

    async def begin(self) -> None:
        """Say SERVING, where nothing is wrong."""
        await self.edge.start()
        self.judge()

    def judge(self) -> None:
        """Say of each service whether it can do what it is for."""
        if not self.has_ended:
            self.edge.health.set_impaired(self.problems().keys())

    def end(self) -> None:
        """Say NOT_SERVING, and end watches with the points where they resume."""
        self.has_ended = True
        self.edge.health.set_not_serving()
        self.watches.drain()
        self.log.changes.wake()


@dataclass(frozen=True, slots=True)
class Life:
    """What components can see of the daemon, and do to it."""

    fail: Callable[[], None]
    """Ends it: the store cannot be trusted."""
    drain: Callable[[float | None], int]
    """See `Controls.drain`."""
    statuses: Callable[[], tuple[Status, ...]]
    probes: Callable[[], Mapping[str, Probe]]
    note: Callable[[str, str], None]
    """Notes what is wrong with a component, empty when all is well again."""
    problems: Callable[[], Mapping[str, str]]
    """What is wrong, by name of the component."""
    reloading: Reloading


TELEMETRY = Handle[Telemetry]("telemetry")
STORE = Handle[Store]("store")
BLOBS = Handle[Blobs]("blobs")
LOG = Handle[Log]("log")
AUDIT = Handle[AuditLog]("audit")
HOUSE = Handle[House]("house")
"""Models, tools, limits and all else that the rooms share."""
PROVIDERS = Handle[Leases]("providers")
"""Closes those that are replaced, when nobody uses them any more."""
ROOMS = Handle[Rooms]("runtime")
EDGE = Handle[Edge]("listeners")
"""The addresses; nothing is answered yet."""
LOAD = Handle[Overload]("load")
CLEANING = Handle[Cleaning]("cleaning")
LATE = Handle[LateAnswers]("late_answers")
SERVERS = Handle[Registry]("servers")
CALLS = Handle[DirectCalls]("tool_calls")
RUNS = Handle[Supervisor]("runs")
EXPORTS = Handle[Telemetry]("exports")
RELOADS = Handle[Reloading]("reloads")
SERVING = Handle[Serving]("serving")
PROBES = Handle[Probing]("probes")
"""Looks at all the others, again and again."""
