"""AgentService: versioned definitions of how runs are executed. Above: the edge. Below: the log, the runtime's agents.

An agent's record holds its newest version, and the record's version is the agent's. Every version has a record of its
own beside it, written in the same transaction. Exactly one agent is the default: whoever becomes it changes the one
before in the same transaction, at the version that it was seen at, so that of two that want it at once one looks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from behest.v1 import agent_service_pb2 as pb
from behest.v1.agent_pb2 import Agent
from behestd.core.times import timestamp
from behestd.errors import AgentNotFound, GraphNotFound, InvalidRequest
from behestd.log.store import Change, Claim, Committed, Delete, Put, Record, RecordChanged, RequestTaken
from behestd.runtime.agents import BUILT_IN, KIND, Agents
from behestd.runtime.graphs import graph_of
from behestd.runtime.house import House
from behestd.runtime.whole import whole
from behestd.service import agent_checks as checks
from behestd.service import records
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.validate import identifier, labels, not_negative, request_id, required_message

VERSION_KIND = "agent_version"
_NAME = "/behest.v1.AgentService/"
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class _Step:
    """A write of one agent: what it was (None: nothing), and what it is to be."""

    old: Agent | None
    new: Agent


class AgentDefinitions:
    """Handlers of AgentService."""

    def __init__(self, house: House, agents: Agents) -> None:
        self._house = house
        self._log = house.log
        self._agents = agents

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "CreateAgent": self.create_agent,
            _NAME + "GetAgent": self.get_agent,
            _NAME + "ListAgents": self.list_agents,
            _NAME + "UpdateAgent": self.update_agent,
            _NAME + "DeleteAgent": self.delete_agent,
        }

    async def create_agent(self, request: pb.CreateAgentRequest, call: Call) -> pb.CreateAgentResponse:
        """Create an agent as version 1."""
        request_id("request_id", request.request_id)
        required_message(request, "agent")
        if request.agent.id:
            checks.check_id("agent.id", request.agent.id)
        digest = records.digest_of(request)
        known = await records.earlier(self._log, call.namespace, request.request_id, digest)
        if known:
            return pb.CreateAgentResponse(agent=await self._made(call.namespace, known), replayed=True)
        await self._check(call.namespace, request.agent)
        agent = Agent()
        agent.CopyFrom(request.agent)
        agent.id = request.agent.id or self._house.ids.make("agt")
        agent.ClearField("create_time")
        claim = records.claim_of(call.namespace, request.request_id, digest, agent.id)
        while True:
            if agent.id in await self._read(call.namespace):
                raise checks.AgentIdTaken(agent.id)
            outcome = await self._write(call.namespace, _Step(None, agent), claim)
            if isinstance(outcome, Agent):
                return pb.CreateAgentResponse(agent=outcome)
            if isinstance(outcome, RequestTaken):
                target = records.same(outcome, digest, request.request_id)
                return pb.CreateAgentResponse(agent=await self._made(call.namespace, target), replayed=True)

    async def get_agent(self, request: pb.GetAgentRequest, call: Call) -> pb.GetAgentResponse:
        """Get an agent, at its newest or at an earlier version."""
        checks.check_id("agent_id", request.agent_id)
        not_negative("version", request.version)
        newest = await self._agent(call.namespace, request.agent_id)
        if request.version in (0, newest.version):
            return pb.GetAgentResponse(agent=newest)
        name = _version_name(request.agent_id, request.version)
        record = await self._log.store.record(call.namespace, VERSION_KIND, name, 0)
        if record is None or request.version > newest.version:
            raise AgentNotFound(f"{request.agent_id} at version {request.version}")
        return pb.GetAgentResponse(agent=Agent.FromString(record.body))

    async def list_agents(self, request: pb.ListAgentsRequest, call: Call) -> pb.ListAgentsResponse:
        """List the newest versions of agents, by id."""
        page = page_of(request, call.namespace, (str,))
        wanted = labels("labels", request.labels)
        after = str(page.after[0]) if page.after else ""
        response = pb.ListAgentsResponse()
        size_bytes = 0
        for agent in (await self._agents.all(call.namespace)).values():
            is_out = agent.id <= after or (agent.hidden and not request.include_hidden)
            if is_out or not records.has_labels(agent.labels, wanted):
                continue
            size_bytes += agent.ByteSize()
            if len(response.agents) == page.size or (response.agents and size_bytes > records.PAGE_BYTES):
                response.next_page_token = page.token(response.agents[-1].id)
                break
            response.agents.append(agent)
        return response

    async def update_agent(self, request: pb.UpdateAgentRequest, call: Call) -> pb.UpdateAgentResponse:
        """Change the named fields of an agent, as a new version."""
        required_message(request, "agent")
        given, paths = request.agent, request.update_mask.paths
        identifier("agent.id", given.id)
        records.check_mask(given, paths, checks.CHANGEABLE)
        expected = records.version_expected(request)
        while True:
            old = (await self._read(call.namespace)).get(given.id)
            if old is None:
                raise AgentNotFound(given.id)
            checks.check_expected(expected, old.version)
            new = records.changed(old, given, paths)
            if old.is_default and not new.is_default:
                raise InvalidRequest("agent.is_default", "cannot be cleared; set it on another agent")
            await self._check(call.namespace, new)
            if new == old:
                return pb.UpdateAgentResponse(agent=old)
            outcome = await self._write(call.namespace, _Step(old, new))
            if isinstance(outcome, Agent):
                return pb.UpdateAgentResponse(agent=outcome)

    async def delete_agent(self, request: pb.DeleteAgentRequest, call: Call) -> pb.DeleteAgentResponse:
        """Delete an agent with all its versions."""
        checks.check_id("agent_id", request.agent_id)
        while True:
            agent = (await self._read(call.namespace)).get(request.agent_id)
            if agent is None:
                return pb.DeleteAgentResponse()
            if agent.is_default or agent.id == BUILT_IN.id:
                raise checks.AgentInUse(agent.id)
            deletes = [Delete(call.namespace, KIND, agent.id, agent.version)]
            names = (_version_name(agent.id, version) for version in range(1, agent.version + 1))
            deletes += [Delete(call.namespace, VERSION_KIND, name) for name in names]
            outcome = await whole(self._commit(call.namespace, Change(deletes=tuple(deletes))))
            if isinstance(outcome, Committed):
                return pb.DeleteAgentResponse()

    async def _check(self, namespace: str, agent: Agent) -> None:
        """Refuse a definition that no run can have. Raises InvalidRequest, TooLarge."""
        checks.check_agent(agent, self._house.models.of(namespace), self._house.sources)
        if schema := agent.response_format.schema_json:
            self._house.tools.validators.check_answer("agent.response_format.schema_json", schema)
        try:
            if agent.graph_id:
                await graph_of(self._log.store, namespace, agent.graph_id)
        except GraphNotFound as error:
            raise InvalidRequest("agent.graph_id", error.message) from None

    # --- records ---

    async def _agent(self, namespace: str, agent_id: str) -> Agent:
        found = (await self._agents.all(namespace)).get(agent_id)
        if found is None:
            raise AgentNotFound(agent_id)
        return found

    async def _made(self, namespace: str, agent_id: str) -> Agent:
        """An agent that somebody may have made this very moment, so that it is not remembered yet."""
        self._agents.forget(namespace)
        return await self._agent(namespace, agent_id)

    async def _read(self, namespace: str) -> Mapping[str, Agent]:
        """All agents as the store has them now, since a write is decided on them."""
        self._agents.forget(namespace)
        return await self._agents.all(namespace)

    async def _write(
        self, namespace: str, step: _Step, claim: Claim | None = None
    ) -> Agent | RecordChanged | RequestTaken:
        """Write an agent, and make way when it becomes the default: gives it as it was stored, or what came between."""
        steps = [step]
        if step.new.is_default:
            before = await self._agents.resolve(namespace, "")
            if before.id != step.new.id:
                cleared = Agent()
                cleared.CopyFrom(before)
                cleared.is_default = False
                steps.append(_Step(before, cleared))
        now_ns = self._house.clock.now_ns()
        puts = [put for one in steps for put in self._puts(namespace, one, now_ns)]
        outcome = await whole(self._commit(namespace, Change(puts=tuple(puts), claim=claim)))
        if not isinstance(outcome, Committed):
            return outcome
        stored = Agent()
        stored.CopyFrom(step.new)
        return stored

    async def _commit(self, namespace: str, change: Change) -> Committed | RequestTaken | RecordChanged:
        try:
            return await records.commit(self._log, change)
        finally:
            self._agents.forget(namespace)

    def _puts(self, namespace: str, step: _Step, now_ns: int) -> list[Put]:
        """Write a version over the one before. The built-in agent is written first, as the version 1 that it is."""
        old, new = step.old, step.new
        puts: list[Put] = []
        version = 0 if old is None else old.version
        if old is not None and not old.HasField("create_time"):
            puts += _put(namespace, old, 0, now_ns)
        new.version = version + 1
        new.update_time.CopyFrom(timestamp(now_ns))
        if not new.HasField("create_time"):
            new.create_time.CopyFrom(timestamp(now_ns))
        return puts + _put(namespace, new, version, now_ns)


def _put(namespace: str, agent: Agent, expected_version: int, now_ns: int) -> list[Put]:
    body = agent.SerializeToString(deterministic=True)
    name = _version_name(agent.id, agent.version)
    return [
        Put(Record(namespace, KIND, agent.id, body, create_time_ns=now_ns), expected_version),
        Put(Record(namespace, VERSION_KIND, name, body, create_time_ns=now_ns)),
    ]


def _version_name(agent_id: str, version: int) -> str:
    """The id of a version's record: no agent's id holds a slash."""
    return f"{agent_id}/{version}"
