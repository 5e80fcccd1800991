"""What a run of a graph waits for is said node by node, and operators see everything that its nodes have in flight."""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1.daemon_service_pb2 import GetStatusRequest, PauseTarget
from behest.v1.graph_pb2 import GraphNode
from behest.v1.run_service_pb2 import RunObstacle
from behest.v1.run_state_pb2 import RunState
from tests.approvals.scenes import CAREFUL
from tests.daemons import Served
from tests.reasoning.house import chain
from tests.reasoning.mind import Says, thinking
from tests.reasoning.wide import SAYS, begin, wide
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE, Ledger, events_of, tools
from tests.usage.books import until

PAYS: Says = {**SAYS, "act": '/tool pay {"note": "it"}'}
LOOKS: Says = {**SAYS, "act": '/tool look {"what": "it"}'}


def pay(note: str) -> str:
    """Pay, which needs an approval."""
    return f"paid {note}"


async def obstacles(served: Served, run_id: str, *kinds: str) -> Sequence[RunObstacle]:
    """Wait until a run has obstacles of these kinds, and give them."""

    async def is_so() -> bool:
        return [each.kind for each in (await served.client.runs.explain(run_id)).obstacles] == list(kinds)

    await until(is_so)
    return (await served.client.runs.explain(run_id)).obstacles


async def test_each_node_at_work_says_what_it_waits_for() -> None:  # C129 N07
    async with thinking(PAYS, tools=tools((pay, NON_IDEMPOTENT)), operator=CAREFUL) as (served, mind):
        gates = [mind.shut("reason"), mind.shut("generate")]
        run = await begin(served, wide("reason", "act", "generate"))
        first, second, third = await obstacles(served, run.id, "model_call", "approval", "model_call")
        assert (first.subject, third.subject) == ("mind/echo", "mind/echo")
        assert first.message.startswith("node reason: attempt 1 of step ")
        assert second.message.startswith("node act: ")
        assert "pay" in second.message
        assert third.message.startswith("node generate: ")
        assert first.HasField("until")

        for gate in gates:
            gate.set()
        (left,) = await obstacles(served, run.id, "approval")
        assert left.subject == second.subject
        assert (await served.client.runs.get(run.id)).state == RunState.RUN_STATE_WAITING
        (asked,) = [each async for each in served.client.approvals.list()]
        assert (asked.call_id, asked.tool_name, asked.run_id) == (second.subject, "pay", run.id)
        await served.client.approvals.approve(asked)
        await events_of(served.client.watch(run.id))


async def test_a_node_in_a_subgraph_is_named_with_its_way() -> None:
    inner = chain(GraphNode(id="think", operator="reason"), GraphNode(id="say", operator="answer"))
    graph = chain(GraphNode(id="part", subgraph=inner), GraphNode(id="end", operator="answer"))
    async with thinking(SAYS) as (served, mind):
        mind.shut("reason")
        run = await begin(served, graph)
        (found,) = await obstacles(served, run.id, "model_call")
        assert found.message.startswith("node part/think: ")
        await served.client.runs.cancel(run.id)


async def test_a_pause_is_said_before_what_other_nodes_do() -> None:  # N17
    ledger = Ledger()

    async def look(what: str) -> str:
        """Look at something."""
        return await ledger.work(what)

    async with thinking(LOOKS, tools=tools((look, PURE)), operator=OPEN) as (served, mind):
        target = PauseTarget(tool_name="look")
        await served.client.daemon.pause(target, "an incident")
        mind.shut("reason")
        run = await begin(served, wide("reason", "act"))
        held, working = await obstacles(served, run.id, "paused", "model_call")
        assert held.subject == "tool look"
        assert working.message.startswith("node reason: ")
        await served.client.daemon.unpause(target)
        _, calling = await obstacles(served, run.id, "model_call", "tool_call")
        assert calling.message.startswith("node act: ")
        assert ledger.calls == ["it"]
        await served.client.runs.cancel(run.id)


async def test_a_node_whose_model_is_paused_is_counted_as_held_there() -> None:  # N17
    graph = wide("reason")
    graph.nodes[1].model = "scripted/small"
    async with thinking(SAYS) as (served, _):
        target = PauseTarget(model="scripted/small")
        await served.client.daemon.pause(target, "an incident")
        run = await begin(served, graph)
        (held,) = await obstacles(served, run.id, "paused")
        assert held.subject == "model scripted/small"
        status = await served.client.stubs.daemon.GetStatus(GetStatusRequest())
        assert [(each.model, each.held) for each in status.load.models] == [("scripted/small", 1)]
        await served.client.daemon.unpause(target)
        await events_of(served.client.watch(run.id))


async def test_the_load_counts_what_all_nodes_have_in_flight() -> None:
    ledger = Ledger()

    async def look(what: str) -> str:
        """Look at something."""
        return await ledger.work(what)

    async with thinking(LOOKS, tools=tools((look, PURE)), operator=OPEN) as (served, mind):
        for name in ("reason", "generate"):
            mind.shut(name)
        run = await begin(served, wide("reason", "generate", "act"))
        await obstacles(served, run.id, "model_call", "model_call", "tool_call")
        status = await served.client.stubs.daemon.GetStatus(GetStatusRequest())
        assert [(each.model, each.in_flight) for each in status.load.models] == [("mind/echo", 2)]
        assert [(each.tool_name, each.in_flight) for each in status.load.tools] == [("look", 1)]
        assert status.tool_calls == 1
        await served.client.runs.cancel(run.id)
