"""What can change in a daemon that runs, and how: the list of its parts for a reload.

Above: the composition. Below: the rooms, each with a way to be set anew. A part of yours joins in one line: a function
that is given the new plan, checks and makes what it needs of it, and returns what puts that in force.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from behestd.components import Rooms
from behestd.plan import Plan
from behestd.reload import Prepare
from behestd.runtime import budget_start
from behestd.runtime.house import House
from behestd.service.server import Edge
from behestd.service.telemetry import Telemetry
from behestd.tools import policy as tool_policy
from behestd.wire import endpoint

REACH_SECONDS = 1.0
"""How long a reload waits for new tool servers to be reached."""

Swap = Callable[[], None]


class Changes:
    """All that can change in one daemon."""

    def __init__(
        self, house: House, rooms: Rooms, edge: Edge, telemetry: Telemetry, plan_in_force: Callable[[], Plan]
    ) -> None:
        self._plan_in_force = plan_in_force
        self._house = house
        self._rooms = rooms
        self._edge = edge
        self._lacking: tuple[frozenset[str], int] | None = None
        self.parts: Sequence[Prepare] = (
            edge.entrance.prepare,
            telemetry.prepare,
            house.intake.prepare,
            self._sources,
            self._models,
            self._tools,
            self._limits,
            self._budgets,
            self._servers,
        )
        self.locks: Sequence[AbstractAsyncContextManager[object]] = (rooms.registry.lock,)

    async def settle(self) -> None:
        """Add up what new budgets lack, and wait a while for new servers."""
        if self._lacking is not None:
            (right, upto), self._lacking = self._lacking, None
            house = self._house
            await budget_start.add_earlier(house.ledger, house.log.store, right, upto, house.clock.now_ns())
        await self._rooms.registry.tried(REACH_SECONDS)

    def _servers(self, plan: Plan) -> Swap:
        registry = self._rooms.registry
        rules = endpoint.Rules(allow_loopback=plan.is_local, allowed=plan.endpoints)
        return registry.prepare(replace(registry.dialling, secrets=plan.secrets, rules=rules, configured=plan.servers))

    def _sources(self, plan: Plan) -> Swap:
        return self._house.sources.prepare(plan.sources)

    def _models(self, plan: Plan) -> Swap:
        house = self._house
        stay = self._same_but_for_secrets(plan)

        def swap() -> None:
            house.endpoints.set(plan.circuits, plan.model_limits)
            before = house.models.current.models
            parted = set(house.models.swap(plan.models))
            # A secret that was rotated applies to the next request, also of runs that exist.
            kept = {
                name: each for name, each in before.items() if each.provider in parted and each.provider.id not in stay
            }
            for run in self._rooms.supervisor.runs() if kept else ():
                house.leases.pin((run.created.namespace, run.id), kept)
            for provider in parted:
                house.leases.part(provider)

        return swap

    def _same_but_for_secrets(self, plan: Plan) -> frozenset[str]:
        """The ids of providers that are configured as before."""
        before, after = self._plan_in_force().configuration, plan.configuration
        if before is None or after is None:
            return frozenset()
        old, new = before.settings.providers, after.settings.providers
        return frozenset(name for name, provider in new.items() if old.get(name) == provider)

    def _tools(self, plan: Plan) -> Swap:
        tool_policy.check(plan.tool_policies)
        policies = tool_policy.Policies(plan.tool_policies)
        return lambda: self._house.tools.set(policies)

    def _limits(self, plan: Plan) -> Swap:
        house, rooms, limits = self._house, self._rooms, plan.limits

        def swap() -> None:
            house.adopt(plan)
            house.kin.most_asked = limits.pending_approvals
            rooms.tools.set_slots(limits.tool_calls)
            rooms.inputs.set(plan.rules)
            rooms.approvals.set_own(plan.is_local or plan.operator.own_approvals)
            rooms.cleaning.retention.rules = plan.retention
            rooms.watches.heartbeat_seconds = plan.heartbeat_seconds

        return swap

    def _budgets(self, plan: Plan) -> Swap:
        house = self._house

        def swap() -> None:
            right = house.ledger.set(plan.budgets, self._rooms.supervisor.runs())
            if right is not None:
                self._lacking = right, house.log.position

        return swap
