"""The tools of each namespace: which there are, under which policy, and who executes them.

Above it the services (lists, registrations) and the runtime (resolves an agent's names when a run is made, routes each
call). A snapshot never changes: a change replaces it, so a run that pinned a tool is never surprised; it asks by hash,
and a hash that is no longer served is TOOL_CHANGED. Names of one namespace are unique; servers share a name only with
the same hash, and then they are replicas: a call goes to the least loaded of those that are there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.operator_pb2 import Operator
from behest.v1.server_pb2 import Server
from behest.v1.tool_pb2 import Executed, Tool, ToolPolicy
from behestd.core.places import Place
from behestd.core.times import duration_ns
from behestd.errors import AlreadyExists, InvalidRequest, ToolNotFound
from behestd.tools import builtin
from behestd.tools import policy as policies
from behestd.tools.policy import Policies
from behestd.tools.schema import Validators
from behestd.tools.tool import Executor, ToolFailure

MAX_TOOLS_PER_SERVER = 1_000
MAX_DESCRIPTION_BYTES = 4 * 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{0,32}")

Bind = Callable[[Tool], Executor]
"""Makes the executor of a tool, which is given as its server knows it: without prefix, with its own hash."""


class ToolNameTaken(AlreadyExists):
    """Raised when somebody else offers a tool of that name with another definition."""

    def __init__(self, tool: str, server_id: str) -> None:
        owner = f"server {server_id}" if server_id else "the daemon"
        super().__init__("TOOL_NAME_TAKEN", f"tool {tool} is offered by {owner}", tool=tool, serverId=server_id)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a server does now: whether it is there, whether it takes a call more, and how many calls it has."""

    is_there: bool = True
    is_full: bool = False
    in_flight: int = 0
    lease_id: str = ""
    """The attachment of an attached server that is there, and its stream."""
    rejoins: bool = False
    """Whether calls of an earlier owner can be joined there, now or when it is back."""


GOOD = Standing()


def _good() -> Standing:
    return GOOD


Stand = Callable[[], Standing]


@dataclass(frozen=True, slots=True)
class Otherwise:
    """The policy of a tool that the configuration says nothing of, who set it, and how long its keys are known."""

    policy: ToolPolicy | None
    source: str
    retention_seconds: float | None

    def against(self, configured: ToolPolicy | None) -> tuple[ToolPolicy, str]:
        """The policy in force, and who set it."""
        found, source = (self.policy, self.source) if configured is None else (configured, "configuration")
        return policies.in_force(found, self.retention_seconds), source


@dataclass(frozen=True, slots=True)
class Offer:
    """One offer of a tool: the tool as models and runs see it, who set its policy, and who executes it."""

    tool: Tool
    policy_source: str
    """"configuration", "registration", "extension" or "default"."""
    executor: Executor
    stand: Stand = _good
    """Tells how its server does."""
    otherwise: Otherwise = Otherwise(None, "default", None)
    """What holds where the configuration has no policy."""

    @property
    def hint_differs(self) -> bool:
        """Whether the author claims another class of effect than the operator set."""
        return policies.hint_differs(self.tool)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes. `server_id` is empty for a function inside the daemon."""

    executor: Executor
    server_id: str


class Snapshot:
    """The tools of a namespace at one time. Never changes."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        by_name: dict[str, list[Offer]] = {}
        for offer in offers:
            by_name.setdefault(offer.tool.name, []).append(offer)
        replicas = {
            name: tuple(sorted(by_name[name], key=lambda offer: offer.tool.server_id)) for name in sorted(by_name)
        }
        self.offers: Mapping[str, tuple[Offer, ...]] = MappingProxyType(replicas)
        self.tools: Mapping[str, Tool] = MappingProxyType({name: _pinned(replicas[name]) for name in replicas})

    def resolve(self, patterns: Iterable[str]) -> tuple[Tool, ...]:
        """Pin the tools that names and globs name, by ascending name: hash, server and policy in force included.

        Raises ToolNotFound for a name that is not there; a glob may match nothing, and none of the built-in tools.
        """
        names: set[str] = set()
        built_in: list[Tool] = []
        for pattern in patterns:
            if pattern in self.tools:
                names.add(pattern)
            elif pattern in builtin.TOOLS:
                built_in.append(_built_in(pattern))
            elif _NAME.fullmatch(pattern):
                raise ToolNotFound(pattern)
            else:
                names.update(name for name in self.tools if fnmatchcase(name, pattern))
        found = {tool.name: tool for tool in (*built_in, *(self.tools[name] for name in names))}
        return tuple(found[name] for name in sorted(found))

    def route(self, name: str, tool_hash: bytes, key: str, avoid: Set[str] = frozenset()) -> Route:
        """Find who executes a pinned tool: the least loaded replica that is there, of equals always the same for a key.

        `avoid` holds ids of servers that were not reached; they are taken only when there is no other. Raises
        ToolFailure with TOOL_NOT_FOUND or TOOL_CHANGED, both proofs that nothing was executed.
        """
        same = self._same(name, tool_hash)
        if len(same) == 1:
            return Route(same[0].executor, same[0].tool.server_id)
        usable = [offer for offer in same if offer.tool.server_id not in avoid] or same
        standings = {offer.tool.server_id: _rank(offer.stand()) for offer in usable}
        best = min(standings.values())
        equal = [offer for offer in usable if standings[offer.tool.server_id] == best]
        chosen = max(equal, key=lambda offer: _weight(offer.tool.server_id, key))
        return Route(chosen.executor, chosen.tool.server_id)

    def route_to(self, name: str, tool_hash: bytes, server_id: str) -> Route:
        """Find one server's executor of a pinned tool.

        Raises ToolFailure as `route` does, and as not sent when only others serve it.
        """
        for offer in self._same(name, tool_hash):
            if offer.tool.server_id == server_id:
                return Route(offer.executor, server_id)
        not_sent = FailureClass.FAILURE_CLASS_NOT_SENT
        text = f"tool {name} is not served any more by the server that was chosen"
        raise ToolFailure(not_sent, Executed.EXECUTED_NO, "TOOL_UNAVAILABLE", text)

    def _same(self, name: str, tool_hash: bytes) -> list[Offer]:
        offers = self.offers.get(name, ())
        if not offers:
            raise _not_served("TOOL_NOT_FOUND", f"tool {name} not found")
        same = [offer for offer in offers if offer.tool.hash == tool_hash]
        if not same:
            raise _not_served("TOOL_CHANGED", f"tool {name} is not served any more as the run pinned it")
        return same


class Catalog:
    """All tools. One owner, the loop; nothing here waits. Functions of extensions are in every namespace."""

    def __init__(self, validators: Validators, configured: Policies = policies.NONE) -> None:
        """`configured` are the policies of the configuration: they win over those of registrations and extensions."""
        self.validators = validators
        self._configured = configured
        self._functions: dict[str, Offer] = {}
        self._servers: dict[str, dict[str, tuple[Offer, ...]]] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._functions_only = Snapshot(())
        self.operators: dict[str, Operator] = {}
        """Operators of reasoning graphs whose work functions of extensions do, by name."""

    def snapshot(self, namespace: str) -> Snapshot:
        """The tools of a namespace now."""
        return self._snapshots.get(namespace, self._functions_only)

    def register_function(self, tool: Tool, executor: Executor, policy: ToolPolicy | None = None) -> Tool:
        """Add a function of an extension to every namespace. `policy` is what the extension says, trusted code.

        Raises InvalidRequest, and ToolNameTaken for any name that exists.
        """
        made = self._checked(tool, "")
        self._refuse_taken(made, [self._functions_only, *self._snapshots.values()])
        # An extension keeps its own promise of idempotence: there is no server that could forget the key.
        own = "extension" if policy is not None else "default"
        otherwise = Otherwise(policy, own, policies.MIN_RETENTION_SECONDS)
        in_force, source = otherwise.against(self._configured.match(made.name))
        made.policy.CopyFrom(in_force)
        self._functions[made.name] = Offer(made, source, executor, otherwise=otherwise)
        self._functions_only = Snapshot(self._functions.values())
        for namespace in self._snapshots:
            self._rebuild(namespace)
        return made

    def configured(self, name: str) -> ToolPolicy | None:
        """The policy that the configuration has for tools of a name, None when it has none."""
        return self._configured.match(name)

    def set(self, configured: Policies) -> None:
        """Put other policies of the configuration in force, for runs that are made from now on."""
        if configured == self._configured:
            return
        self._configured = configured
        self._functions = {name: self._renewed(offer) for name, offer in self._functions.items()}
        self._functions_only = Snapshot(self._functions.values())
        for namespace, servers in self._servers.items():
            for server_id, offers in servers.items():
                servers[server_id] = tuple(map(self._renewed, offers))
            self._rebuild(namespace)

    def _renewed(self, offer: Offer) -> Offer:
        """The offer under the policies that are in force now."""
        in_force, source = offer.otherwise.against(self._configured.match(offer.tool.name))
        tool = Tool()
        tool.CopyFrom(offer.tool)
        tool.policy.CopyFrom(in_force)
        return replace(offer, tool=tool, policy_source=source)

    def place(self, namespace: str, tool: Tool, key: str, *, avoid: str = "", stay: str = "") -> Place:
        """Choose a server for an attempt. See `core.places.Places`."""
        tools = self.snapshot(namespace)
        chosen = stay
        if not stay:
            try:
                chosen = tools.route(tool.name, tool.hash, key, {avoid} if avoid else frozenset()).server_id
            except ToolFailure:
                chosen = tool.server_id
        offers = tools.offers.get(tool.name, ())
        return Place(chosen, next((offer.stand().lease_id for offer in offers if offer.tool.server_id == chosen), ""))

    def rejoins(self, namespace: str, server_id: str) -> bool:
        """Whether calls that an earlier owner sent to this server can be joined. See `core.places.Places`."""
        offers = self._of(namespace).get(server_id, ())
        return bool(offers) and offers[0].stand().rejoins

    def register_server(
        self, namespace: str, server: Server, tools: Sequence[Tool], bind: Bind, stand: Stand = _good
    ) -> tuple[Tool, ...]:
        """Put the tools of a server in place of what the same server offered before, all or none.

        `tools` are as the server lists them; prefix, policies and retention are those of `server`; `stand` tells how
        it does. Raises InvalidRequest (TOOL_NAME_INVALID, TOOL_SCHEMA_INVALID, …) and ToolNameTaken.
        """
        policies.check(server.tool_policies)
        if not _PREFIX.fullmatch(server.name_prefix):
            raise InvalidRequest("name_prefix", "it is not [A-Za-z0-9_-]{0,32}", reason="TOOL_NAME_INVALID")
        if len(tools) > MAX_TOOLS_PER_SERVER:
            raise InvalidRequest("tools", f"{len(tools)} tools exceed the limit of {MAX_TOOLS_PER_SERVER}")
        made: dict[str, Offer] = {}
        for index, tool in enumerate(tools):
            try:
                offer = self._offer(server, tool, bind, stand)
            except InvalidRequest as error:
                raise error.below(f"tools[{index}]") from None
            if offer.tool.name in made:
                raise ToolNameTaken(offer.tool.name, server.id)
            self._refuse_taken(offer.tool, [self.snapshot(namespace)])
            made[offer.tool.name] = offer
        self._servers.setdefault(namespace, {})[server.id] = tuple(made.values())
        self._rebuild(namespace)
        return tuple(offer.tool for offer in made.values())

    def unregister_server(self, namespace: str, server_id: str) -> None:
        """Take away what a server offers. No error when there is nothing."""
        if self._of(namespace).pop(server_id, None) is not None:
            self._rebuild(namespace)

    def offered(self, namespace: str, server_id: str) -> tuple[Tool, ...]:
        """The tools that a server offers now, none when it offers none."""
        return tuple(offer.tool for offer in self._of(namespace).get(server_id, ()))

    def _of(self, namespace: str) -> dict[str, tuple[Offer, ...]]:
        return self._servers.get(namespace, {})

    def _offer(self, server: Server, tool: Tool, bind: Bind, stand: Stand) -> Offer:
        own = self._checked(tool, "")
        made = self._checked(tool, server.name_prefix)
        made.server_id = server.id
        asked = Policies(server.tool_policies).match(made.name)
        told = server.HasField("dedupe_retention")
        retention_seconds = duration_ns(server.dedupe_retention) / 1e9 if told else None
        otherwise = Otherwise(asked, "default" if asked is None else "registration", retention_seconds)
        in_force, source = otherwise.against(self._configured.match(made.name))
        made.policy.CopyFrom(in_force)
        return Offer(made, source, bind(own), stand, otherwise)

    def _checked(self, tool: Tool, prefix: str) -> Tool:
        """Copy what an author says of a tool, checked; what the daemon sets is left out, the hash is computed."""
        made = Tool(
            name=prefix + tool.name,
            description=tool.description,
            input_schema_json=tool.input_schema_json,
            output_schema_json=tool.output_schema_json,
            labels=tool.labels,
        )
        if tool.HasField("hints"):
            made.hints.CopyFrom(tool.hints)
        if not _NAME.fullmatch(made.name):
            shown = made.name[:80]
            raise InvalidRequest("name", f"{shown!r} is not [A-Za-z0-9_-]{{1,64}}", reason="TOOL_NAME_INVALID")
        size_bytes = len(made.description.encode())
        if size_bytes > MAX_DESCRIPTION_BYTES:
            limit = f"{size_bytes} bytes exceed the limit of {MAX_DESCRIPTION_BYTES} bytes"
            raise InvalidRequest("description", f"description of tool {made.name}: {limit}")
        self.validators.check_tool(made)
        made.hash = tool_hash(made)
        return made

    def _refuse_taken(self, tool: Tool, snapshots: Sequence[Snapshot]) -> None:
        if tool.name in builtin.TOOLS:
            raise ToolNameTaken(tool.name, "")
        for snapshot in snapshots:
            for offer in snapshot.offers.get(tool.name, ()):
                of_servers = bool(tool.server_id and offer.tool.server_id)
                is_own = of_servers and offer.tool.server_id == tool.server_id
                if not is_own and not (of_servers and offer.tool.hash == tool.hash):
                    raise ToolNameTaken(tool.name, offer.tool.server_id)

    def _rebuild(self, namespace: str) -> None:
        of_servers = (offer for offers in self._of(namespace).values() for offer in offers)
        self._snapshots[namespace] = Snapshot([*self._functions.values(), *of_servers])


def tool_hash(tool: Tool) -> bytes:
    """SHA-256 over name, description, input schema and output schema, each as its length in 8 bytes and its UTF-8."""
    digest = hashlib.sha256()
    for text in (tool.name, tool.description, tool.input_schema_json, tool.output_schema_json):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def _built_in(name: str) -> Tool:
    tool = Tool()
    tool.CopyFrom(builtin.TOOLS[name])
    tool.hash = tool_hash(tool)
    return tool


def _pinned(offers: Sequence[Offer]) -> Tool:
    """The tool of replicas: the first one's, with the strongest effect that any of them is said to have."""
    if len(offers) == 1:
        return offers[0].tool
    tool = Tool()
    tool.CopyFrom(offers[0].tool)
    for offer in offers[1:]:
        tool.policy.CopyFrom(policies.stricter(tool.policy, offer.tool.policy))
    return tool


def _not_served(reason: str, message: str) -> ToolFailure:
    return ToolFailure(FailureClass.FAILURE_CLASS_PERMANENT, Executed.EXECUTED_NO, reason, message)


def _rank(standing: Standing) -> tuple[bool, bool, int]:
    """How servers are ordered, the best first: there, with room, with few calls."""
    return not standing.is_there, standing.is_full, standing.in_flight


def _weight(server_id: str, key: str) -> bytes:
    """Rendezvous hashing: a replica that comes or goes moves only its own keys."""
    return hashlib.sha256(f"{server_id}\0{key}".encode()).digest()
