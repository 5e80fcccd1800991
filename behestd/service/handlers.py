"""All handlers of the contract by full method name: the one place that knows which services this daemon serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from behestd.runtime.admission import Admission
from behestd.runtime.agents import Agents
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.house import House
from behestd.runtime.orders import Orders
from behestd.runtime.supervisor import Supervisor
from behestd.service.methods import Handler
from behestd.service.runs import Runs
from behestd.service.settings import Settings
from behestd.service.watch import Watches


@dataclass(frozen=True, slots=True)
class Parts:
    """What the services are made of."""

    house: House
    supervisor: Supervisor
    orders: Orders
    agents: Agents
    artifacts: Artifacts
    admission: Admission
    watches: Watches
    edge: Settings


def handlers(parts: Parts) -> Mapping[str, Handler]:
    """The handlers of every service, by full method name."""
    runs = Runs(parts.house, parts.supervisor, parts.orders, parts.admission, parts.watches)
    return {**runs.handlers()}
