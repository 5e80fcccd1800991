"""Parallel nodes are charged one by one: set aside before each call leaves, settled once, each to its own model."""

from __future__ import annotations

from behest.v1.chat_pb2 import Sampling
from behest.v1.definition_pb2 import Budgets
from behest.v1.graph_pb2 import Graph, GraphNode
from behest.v1.run_state_pb2 import RunState
from behest.v1.usage_pb2 import Usage
from behestd.core.nodes import Lane
from behestd.core.run import start
from behestd.core.state import Attempt, Run, Step, replace
from behestd.runtime.budgets import Ledger
from behestd.runtime.clock import SystemClock
from tests.core.stage import T0, created, definition
from tests.reasoning.mind import Says, thinking
from tests.reasoning.wide import SAYS, begin, got, wide
from tests.runs.scenes import events_of, finished, only, until_kind
from tests.usage.books import MODEL, query, reasons, rules, until, used

PRICED: Says = {**SAYS, "reason": "/usage 10 5 /say a", "generate": "/usage 20 5 /say b", "explain": "/stall"}


async def test_each_open_call_of_a_graph_is_set_aside_and_given_back_by_itself() -> None:  # N10
    async with thinking(SAYS, budgets=rules(max_calls=100)) as (served, mind):
        gates = {name: mind.shut(name) for name in ("reason", "generate", "explain")}
        run = await begin(served, wide())
        await until_kind(served.client.watch(run.id), "model_requested", 4)
        for ended, name in enumerate(gates, 1):
            budget = await used(served)
            assert (budget.calls, budget.reserved_calls) == (ended, 4 - ended)
            gates[name].set()
            await until_kind(served.client.watch(run.id), "model_completed", ended + 1)
        await finished(served.client, run.id)
        budget = await used(served)
    assert (budget.calls, budget.reserved_calls, budget.reserved_tokens) == (5, 0, 0)


async def test_a_cancelled_graph_leaves_nothing_set_aside() -> None:  # N10
    async with thinking(SAYS, budgets=rules(max_calls=100)) as (served, mind):
        for name in ("reason", "generate", "explain"):
            mind.shut(name)
        run = await begin(served, wide())
        await until_kind(served.client.watch(run.id), "model_requested", 4)
        await served.client.runs.cancel(run.id)
        ended = await finished(served.client, run.id)
        budget, total = await used(served), (await query(served)).total
    assert ended.state == RunState.RUN_STATE_CANCELLED
    assert (budget.calls, budget.reserved_calls) == (total.usage.attempts, 0)
    assert ended.usage.attempts == total.usage.attempts == 4


async def test_a_budget_that_parallel_nodes_would_pass_ends_the_run_and_is_not_passed() -> None:  # N10
    async with thinking(SAYS, budgets=rules(max_calls=3)) as (served, _):
        run = await begin(served, wide())
        assert await reasons(served.client.watch(run.id).result()) == ["RUNTIME_BUDGET"]

        async def is_settled() -> bool:
            return (await used(served)).reserved_calls == 0

        await until(is_settled)
        budget = await used(served)
    assert budget.calls <= 3


async def test_usage_is_that_of_the_model_that_a_node_asked() -> None:
    graph = wide()
    for node in graph.nodes:
        if node.id in ("generate", "explain"):
            node.model = "scripted/priced" if node.id == "generate" else "scripted/small"
    says: Says = {**PRICED, "explain": SAYS["explain"]}
    async with thinking(says) as (served, _):
        run = await begin(served, graph)
        await finished(served.client, run.id)
        rows = (await query(served, MODEL)).rows
        whole = await got(served, run.id)
    calls = {row.model: row.usage.attempts for row in rows}
    assert calls == {"mind/echo": 3, "scripted/priced": 1, "scripted/small": 1}
    spent = {visit.started.node: visit.usage for visit in whole.reasoning.visits}
    assert spent["reason"].input_tokens == 10
    assert sum(usage.input_tokens for usage in spent.values()) == whole.usage.input_tokens
    assert whole.usage.attempts == 5


async def test_what_a_stopped_attempt_used_is_that_of_its_own_model() -> None:
    graph = wide("generate", "explain")
    graph.nodes[1].model, graph.nodes[2].model = "scripted/priced", "scripted/small"
    async with thinking(SAYS) as (served, _):
        graph.nodes[1].prompt = graph.nodes[2].prompt = "/stall"
        run = await begin(served, graph)
        await until_kind(served.client.watch(run.id), "model_requested", 3)
        await served.client.runs.cancel(run.id)
        events = await until_kind(served.client.watch(run.id), "run_cancelled")
        rows = (await query(served, MODEL)).rows
    assert len(only(events, "model_superseded")) == 2
    assert {row.model: row.usage.attempts for row in rows} == {
        "mind/echo": 1,
        "scripted/priced": 1,
        "scripted/small": 1,
    }


def going_on(*reserves: int) -> Run:
    """A run with a graph, of which so many nodes have a call that goes on."""
    graph = Graph(nodes=[GraphNode(id="answer", operator="answer")])
    run = start("run_1", created(), definition(graph=graph), T0)
    lanes = {
        number: Lane(number, Step(number, open=Attempt(1, "p/m", 0, tokens, Usage(input_tokens=tokens, attempts=1))))
        for number, tokens in enumerate(reserves, 1)
    }
    assert run.nodes is not None
    return replace(run, nodes=replace(run.nodes, lanes=lanes))


def test_a_graph_that_is_taken_up_holds_what_all_its_open_calls_need() -> None:
    ledger = Ledger(SystemClock(), rules(max_total_tokens=1_000))
    run = going_on(10, 20, 30)
    ledger.enter(run)
    account = ledger.account("default")
    assert account is not None
    assert (account.reserved.tokens, account.reserved.calls) == (60, 3)
    ledger.leave(run)
    assert (account.reserved.tokens, account.reserved.calls) == (0, 0)


async def test_the_budget_of_a_run_counts_what_its_other_nodes_have_set_aside() -> None:  # C128
    async with thinking(SAYS) as (served, mind):
        for name in ("reason", "generate", "explain"):
            mind.shut(name)
        budgets = Budgets(max_total_tokens=2_500)
        run = await begin(served, wide(), budgets=budgets, sampling=Sampling(max_output_tokens=1_000))
        assert await reasons(served.client.watch(run.id).result()) == ["RUN_BUDGET"]
        events = await events_of(served.client.watch(run.id))
    assert len(only(events, "model_requested")) <= 3
    assert len(only(events, "model_superseded")) == len(only(events, "model_requested")) - 1
