"""The agents of each namespace: records of the store, remembered in memory. The agent `default` always exists."""

from __future__ import annotations

from behest.v1.agent_pb2 import Agent
from behestd.errors import AgentNotFound
from behestd.log.store import Store

KIND = "agent"
BUILT_IN = Agent(id="default", version=1, display_name="Default", is_default=True, tools=["*"])
"""What `default` is until somebody defines it otherwise: the default model, every tool, no instructions."""

_PAGE = 1000


class Agents:
    """Looks agents up. One owner writes them (the service), which then says `forget`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, dict[str, Agent]] = {}
        self._forgotten = 0

    def forget(self, namespace: str) -> None:
        """Read a namespace's agents again the next time."""
        self._forgotten += 1
        self._known.pop(namespace, None)

    async def all(self, namespace: str) -> dict[str, Agent]:
        """Every agent of a namespace by id, ascending; `default` among them."""
        known = self._known.get(namespace)
        if known is None:
            seen = self._forgotten
            known = await self._read(namespace)
            # What was read while somebody wrote may be old by now: it is given, but not remembered.
            if seen == self._forgotten:
                self._known[namespace] = known
        return known

    async def _read(self, namespace: str) -> dict[str, Agent]:
        found: dict[str, Agent] = {}
        after = ""
        while True:
            page = await self._store.records(namespace, KIND, after=after, limit=_PAGE)
            for record in page:
                agent = Agent.FromString(record.body)
                agent.version = record.version
                found[record.id] = agent
            if len(page) < _PAGE:
                break
            after = page[-1].id
        if BUILT_IN.id not in found:
            built_in = Agent()
            built_in.CopyFrom(BUILT_IN)
            built_in.is_default = not any(agent.is_default for agent in found.values())
            found[BUILT_IN.id] = built_in
        return dict(sorted(found.items()))

    async def resolve(self, namespace: str, agent_id: str) -> Agent:
        """The agent of that id, or the default one when it is empty. Raises AgentNotFound."""
        agents = self._known.get(namespace)
        if agents is None:
            agents = await self.all(namespace)
        if agent_id:
            found = agents.get(agent_id)
            if found is None:
                raise AgentNotFound(agent_id)
            return found
        return next(agent for agent in agents.values() if agent.is_default)
