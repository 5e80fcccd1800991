"""Which tools there are, under which policy, and where a call goes."""

from __future__ import annotations

from hashlib import sha256

import pytest

from behest.tools import ToolServer
from behest.v1.server_pb2 import Server
from behest.v1.tool_pb2 import SideEffect, Tool, ToolHints, ToolPolicy
from behestd.core.times import duration
from behestd.errors import BehestError, ToolNotFound
from behestd.tools.catalog import Catalog, tool_hash
from behestd.tools.policy import Policies
from behestd.tools.schema import Validators
from behestd.tools.tool import Answer, Call, CannotTell, Executor, ShowProgress, Status, ToolFailure
from tests.tools.calls import tool

PURE = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)
IDEMPOTENT = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_IDEMPOTENT)


class Recorded:
    """An executor that is only known by the tool it was made for."""

    def __init__(self, bound: Tool) -> None:
        self.bound = bound

    async def call(self, call: Call, progress: ShowProgress) -> Answer:
        return Answer(())

    async def cancel(self, key: str, epoch: int) -> bool:
        return False

    async def status(self, key: str, epoch: int, wait_seconds: float = 0.0) -> Status:
        return CannotTell()


def bound(executor: Executor) -> Tool:
    assert isinstance(executor, Recorded)
    return executor.bound


def catalog(**configured: ToolPolicy) -> Catalog:
    return Catalog(Validators(), Policies(configured))


def server(name: str = "s1", **fields: object) -> Server:
    return Server(id=name, name=name, **fields)  # type: ignore[arg-type]


def test_tools_are_pinned_sorted_with_hash_server_and_policy() -> None:
    tools = catalog()
    tools.register_server("a", server(tool_policies={"read": PURE}), [tool("write"), tool("read")], Recorded)
    read, write = tools.snapshot("a").resolve(["*"])
    assert (read.name, write.name) == ("read", "write")
    assert read.hash == tool("read").hash
    assert read.server_id == "s1"
    assert read.policy.side_effect == SideEffect.SIDE_EFFECT_PURE
    assert write.policy.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
    assert write.policy.max_attempts == 3


def test_names_and_globs_resolve_and_a_missing_name_is_told() -> None:
    tools = catalog()
    tools.register_server("a", server(), [tool("read"), tool("read_all"), tool("write")], Recorded)
    snapshot = tools.snapshot("a")
    assert [found.name for found in snapshot.resolve(["write", "read*"])] == ["read", "read_all", "write"]
    assert snapshot.resolve(["nothing*"]) == ()
    with pytest.raises(ToolNotFound) as missing:
        snapshot.resolve(["nothing"])
    assert missing.value.reason == "TOOL_NOT_FOUND"


def test_a_snapshot_never_changes_and_a_namespace_sees_its_own_only() -> None:
    tools = catalog()
    tools.register_server("a", server(), [tool("read")], Recorded)
    before = tools.snapshot("a")
    tools.unregister_server("a", "s1")
    assert list(before.tools) == ["read"]
    assert list(tools.snapshot("a").tools) == []
    assert list(tools.snapshot("b").tools) == []


def test_what_the_author_says_of_effects_is_kept_compared_and_not_obeyed() -> None:
    tools = catalog()
    claimed = tool("send")
    claimed.hints.CopyFrom(ToolHints(side_effect=SideEffect.SIDE_EFFECT_PURE))
    claimed.policy.CopyFrom(PURE)
    claimed.server_id = "somebody-else"
    [made] = tools.register_server("a", server(), [claimed], Recorded)
    assert made.policy.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
    assert made.hints.side_effect == SideEffect.SIDE_EFFECT_PURE
    assert made.server_id == "s1"
    [offer] = tools.snapshot("a").offers["send"]
    assert offer.hint_differs
    assert offer.policy_source == "default"


def test_the_configuration_wins_over_the_registration() -> None:
    tools = catalog(send=ToolPolicy(exclusive=True))
    tools.register_server("a", server(tool_policies={"*": PURE}), [tool("send"), tool("read")], Recorded)
    offers = tools.snapshot("a").offers
    assert offers["send"][0].policy_source == "configuration"
    assert offers["send"][0].tool.policy.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
    assert offers["read"][0].policy_source == "registration"


def test_the_class_needs_a_server_that_remembers() -> None:
    tools = catalog()
    for name, seconds, side_effect in (
        ("s1", 47 * 3600.0, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT),
        ("s2", 48 * 3600.0, SideEffect.SIDE_EFFECT_IDEMPOTENT),
    ):
        offered = server(name, tool_policies={"*": IDEMPOTENT}, dedupe_retention=duration(seconds))
        [made] = tools.register_server("a", offered, [tool(f"send-{name}")], Recorded)
        assert made.policy.side_effect == side_effect


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (tool("has space"), "TOOL_NAME_INVALID"),
        (tool("x" * 65), "TOOL_NAME_INVALID"),
        (tool("ünï"), "TOOL_NAME_INVALID"),
        (tool(""), "TOOL_NAME_INVALID"),
        (tool("bad", schema='{"type": "objekt"}'), "TOOL_SCHEMA_INVALID"),
        (tool("bad", output_schema_json="["), "TOOL_SCHEMA_INVALID"),
        (tool("long", description="x" * 4_097), "REQUEST_INVALID"),
    ],
)
def test_one_bad_tool_refuses_the_registration_as_a_whole(wrong: Tool, reason: str) -> None:  # C026
    tools = catalog()
    tools.register_server("a", server(), [tool("kept")], Recorded)
    with pytest.raises(BehestError) as refused:
        tools.register_server("a", server(), [tool("good"), wrong], Recorded)
    assert refused.value.reason == reason
    assert list(tools.snapshot("a").tools) == ["kept"]


def test_a_name_is_shared_only_by_replicas_of_one_definition() -> None:  # C026
    tools = catalog()
    tools.register_server("a", server("s1"), [tool("read")], Recorded)
    tools.register_server("a", server("s2"), [tool("read")], Recorded)
    other = tool("read", description="another")
    for taken in ([other], [tool("new"), tool("new")]):
        with pytest.raises(BehestError) as refused:
            tools.register_server("a", server("s3"), taken, Recorded)
        assert refused.value.reason == "TOOL_NAME_TAKEN"
    tools.register_server("b", server("s3"), [other], Recorded)
    with pytest.raises(BehestError) as refused:
        tools.register_function(tool("read"), Recorded(tool("read")))
    assert refused.value.reason == "TOOL_NAME_TAKEN"


def test_replicas_have_the_strongest_effect_that_any_of_them_is_said_to_have() -> None:
    tools = catalog()
    tools.register_server("a", server("s1", tool_policies={"read": PURE}), [tool("read")], Recorded)
    tools.register_server("a", server("s2"), [tool("read")], Recorded)
    [pinned] = tools.snapshot("a").resolve(["read"])
    assert pinned.policy.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT


def test_a_prefix_is_for_models_and_the_server_is_asked_by_its_own_name_and_hash() -> None:
    tools = catalog()
    [made] = tools.register_server("a", server(name_prefix="files_"), [tool("read")], Recorded)
    assert made.name == "files_read"
    assert made.hash != tool("read").hash
    asked = bound(tools.snapshot("a").route("files_read", made.hash, "key").executor)
    assert (asked.name, asked.hash) == ("read", tool("read").hash)
    with pytest.raises(BehestError):
        tools.register_server("a", server("s2", name_prefix="a b"), [tool("read")], Recorded)


def test_a_definition_that_changed_is_not_routed_to_runs_that_pinned_the_old_one() -> None:  # matrix row 34
    tools = catalog()
    [old] = tools.register_server("a", server(), [tool("read")], Recorded)
    tools.register_server("a", server(), [tool("read", description="changed")], Recorded)
    for name, reason in (("read", "TOOL_CHANGED"), ("gone", "TOOL_NOT_FOUND")):
        with pytest.raises(ToolFailure) as refused:
            tools.snapshot("a").route(name, old.hash, "key")
        assert refused.value.reason == reason
        assert refused.value.failure_class == 6
        assert refused.value.executed == 1


def test_the_calls_of_one_key_go_to_one_replica_unless_it_was_not_reached() -> None:
    tools = catalog()
    for name in ("s1", "s2", "s3"):
        [made] = tools.register_server("a", server(name), [tool("read")], Recorded)
    routes = {f"key-{n}": tools.snapshot("a").route("read", made.hash, f"key-{n}").server_id for n in range(50)}
    assert set(routes.values()) == {"s1", "s2", "s3"}
    tools.unregister_server("a", "s3")
    for key, chosen in routes.items():
        again = tools.snapshot("a").route("read", made.hash, key).server_id
        assert again == chosen or chosen == "s3"
        other = tools.snapshot("a").route("read", made.hash, key, {again}).server_id
        assert other != again
        assert tools.snapshot("a").route("read", made.hash, key, {"s1", "s2"}).server_id == again


def test_functions_are_in_every_namespace() -> None:
    tools = catalog()
    tools.register_server("a", server(), [tool("read")], Recorded)
    made = tools.register_function(tool("now"), Recorded(tool("now")), IDEMPOTENT)
    assert list(tools.snapshot("a").tools) == ["now", "read"]
    assert list(tools.snapshot("elsewhere").tools) == ["now"]
    assert made.policy.side_effect == SideEffect.SIDE_EFFECT_IDEMPOTENT
    assert tools.snapshot("a").route("now", made.hash, "key").server_id == ""


def test_daemon_and_client_compute_one_hash() -> None:
    offered = ToolServer()

    @offered.tool
    def greet(name: str) -> str:
        """Greet, für alle."""
        return name

    [listed] = offered.tools
    assert listed.hash == tool_hash(listed)
    parts = (b"greet", "Greet, für alle.".encode(), listed.input_schema_json.encode(), b"")
    assert listed.hash == sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
