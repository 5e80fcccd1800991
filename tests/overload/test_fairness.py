"""Namespaces take turns, and none of them can take all: by the order in which runs start, not by times."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from behest.v1 import run_service_pb2 as runs
from behestd.runtime.gate import Gates
from behestd.runtime.house import Limits
from behestd.runtime.model_limits import Allowance, Gate, OverLimit
from behestd.runtime.quotas import Rules
from behestd.runtime.slots import Slots, Turn
from behestd.service.scopes import Caller
from tests.runs.scenes import OPEN, PURE, Ledger, tools
from tests.tenancy.callers import TENANT, StillClock, Tenant, serving
from tests.tenancy.things import said

CREATE = "/behest.v1.RunService/CreateRun"
CALLERS = [Caller("flooder", "alpha", TENANT), Caller("other", "bravo", TENANT)]


def test_those_that_wait_start_in_turn_whatever_one_namespace_has_lined_up() -> None:
    gates = Gates(lambda: 1)
    gates.work(("alpha", "first"))
    for number in range(100):
        gates.line_up(("alpha", f"a{number}"))
    gates.line_up(("bravo", "b0"))
    gates.line_up(("bravo", "b1"))
    started, running = [], ("alpha", "first")
    for _ in range(5):
        gates.rest(running)
        found = gates.next_ready()
        assert found is not None
        gates.work(found)
        running = found
        started.append(found[1])
    assert started == ["a0", "b0", "a1", "b1", "a2"]


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_for_more_than_one_run_of_each_other_namespace(seed: int) -> None:
    chance = random.Random(seed)
    capacity, shares = chance.randint(1, 6), {"alpha": 3, "bravo": 6, "delta": 1}
    gates = Gates(lambda: capacity, lambda namespace, most: min(most, shares[namespace]))
    working, waiting, since = [], [], Counter[str]()
    for number in range(400):
        if chance.random() < 0.6 or not working:
            run = (chance.choice("aaaaabd"), f"{number}")
            key = ({"a": "alpha", "b": "bravo", "d": "delta"}[run[0]], run[1])
            if gates.has_room(key[0]) and not any(each[0] == key[0] for each in waiting):
                gates.work(key)
                working.append(key)
            else:
                gates.line_up(key)
                waiting.append(key)
        else:
            gates.rest(working.pop(chance.randrange(len(working))))
        while (found := gates.next_ready()) is not None:
            gates.work(found)
            working.append(found)
            waiting.remove(found)
            since[found[0]] = 0
            for other in {each[0] for each in waiting} - {found[0]}:
                if sum(each[0] == other for each in working) < shares[other]:
                    since[other] += 1
                    assert since[other] <= len(shares), "its turn did not come"
        assert gates.working == len(working) <= capacity
        for name, share in shares.items():
            assert sum(each[0] == name for each in working) <= share
    assert gates.waiting_for_room == len(waiting)


def test_a_namespace_at_its_share_is_passed_over_and_keeps_its_turn() -> None:
    gates = Gates(lambda: 3, lambda namespace, _: 1 if namespace == "alpha" else 3)
    gates.work(("alpha", "a0"))
    for run in (("alpha", "a1"), ("bravo", "b0"), ("bravo", "b1"), ("bravo", "b2")):
        gates.line_up(run)
    for expected in (("bravo", "b0"), ("bravo", "b1")):
        assert gates.next_ready() == expected
        gates.work(expected)
    assert gates.next_ready() is None
    gates.rest(("alpha", "a0"))
    assert gates.next_ready() == ("alpha", "a1")


async def test_a_namespace_with_many_runs_leaves_places_for_the_tool_calls_of_others() -> None:  # row 67
    slots = Slots(4, lambda total: total * 3 // 4)
    turns: list[str] = []

    async def call(namespace: str, run: str) -> None:
        assert await slots.take((namespace, run), "call", 30.0) is Turn.TAKEN
        turns.append(run)

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(call("alpha", f"a{number}"))
        await until(lambda: len(turns) == 3 and slots.statistics().waiting == 5)
        for number in range(2):
            tasks.create_task(call("bravo", f"b{number}"))
        await until(lambda: len(turns) == 4 and slots.statistics().waiting == 6)
        assert turns == ["a0", "a1", "a2", "b0"], "the share of the first is used up, not the places"
        for number in range(4):
            slots.give(("alpha", f"a{number}"))
            await until(lambda number=number: len(turns) == 5 + number)
        assert turns[4] == "b1", "of the namespaces the one that holds fewest is next"
        for number in range(4, 8):
            slots.give(("alpha", f"a{number}"))
    assert sorted(turns) == sorted([*(f"a{number}" for number in range(8)), "b0", "b1"])


async def test_calls_that_wait_for_the_limits_of_a_model_are_let_through_by_namespaces_in_turn() -> None:  # row 67
    gate, through = Gate(Allowance(calls=1, wait_seconds=60.0), StillClock()), list[str]()
    await gate.enter(0, 60.0, "alpha")

    async def call(namespace: str, name: str) -> None:
        await gate.enter(0, 60.0, namespace)
        through.append(name)

    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(call("alpha", f"a{number}"))
        await until(lambda: gate.waiting == 6)
        for number in range(2):
            tasks.create_task(call("bravo", f"b{number}"))
        await until(lambda: gate.waiting == 8)
        for count in range(1, 9):
            gate.leave()
            await until(lambda count=count: len(through) == count)
    assert through == ["a0", "b0", "a1", "b1", "a2", "a3", "a4", "a5"]


async def test_what_others_have_lined_up_does_not_count_against_a_call_that_has_its_turn_before_them() -> None:
    clock = StillClock()
    gate = Gate(Allowance(requests_per_minute=60, wait_seconds=30.0), clock)
    for _ in range(6):
        await gate.enter(0, 60.0, "alpha")
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(gate.enter(0, 60.0, "alpha")) for _ in range(30)]
        await until(lambda: gate.waiting == 30)
        with pytest.raises(OverLimit):
            await gate.enter(0, 60.0, "alpha")
        waiting += [tasks.create_task(gate.enter(0, 60.0, "bravo"))]
        await until(lambda: gate.waiting == 31)
        for task in waiting:
            task.cancel()
    assert gate.waiting == 0


async def order(tenant: Tenant, name: str) -> None:
    """Order a run that says that it has started, and waits."""
    spec = said(f'/tool work {{"name": "{name}"}} /next /say done')
    await tenant.one(CREATE, runs.CreateRunRequest(spec=spec))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks do."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def until_calls(ledger: Ledger, count: int) -> None:
    """Wait until so many runs have started."""
    await until(lambda: len(ledger.calls) >= count)


async def test_runs_of_a_quiet_namespace_start_in_turn_with_those_of_one_that_floods() -> None:  # row 67
    ledger, opened = Ledger(), asyncio.Semaphore(0)

    async def work(name: str) -> str:
        ledger.calls.append(name)
        await opened.acquire()
        return name

    plan = {"tools": tools((work, PURE)), "operator": OPEN, "limits": Limits(active_runs=1, queued_runs=100)}
    async with serving(CALLERS, **plan) as (_, (flooder, other)):
        for number in range(20):
            await order(flooder, f"a{number}")
        await until_calls(ledger, 1)
        for number in range(3):
            await order(other, f"b{number}")
        for count in range(2, 9):
            opened.release()
            await until_calls(ledger, count)
        assert ledger.calls[:8] == ["a0", "a1", "b0", "a2", "b1", "a3", "b2", "a4"]
        for _ in range(50):
            opened.release()
        await until_calls(ledger, 23)


async def test_one_namespace_can_neither_fill_the_queue_nor_take_all_that_works() -> None:  # row 67, S21
    ledger = Ledger()

    async def work(name: str) -> str:
        return await ledger.work(name)

    plan = {"tools": tools((work, PURE)), "operator": OPEN, "limits": Limits(active_runs=4, queued_runs=8)}
    rules = Rules(active_share=0.75, queue_share=0.5)
    async with serving(CALLERS, quotas=rules, **plan) as (served, (flooder, other)):
        for number in range(6):
            await order(flooder, f"a{number}")
        refused = await flooder.call(CREATE, runs.CreateRunRequest(spec=said("hello")))
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "RUNTIME_OVERLOADED")
        assert dict(refused.metadata) == {"limit": "6"}
        await until_calls(ledger, 3)
        await order(other, "b0")
        await until_calls(ledger, 4)
        assert ledger.calls[-1] == "b0"
        assert served.daemon.house.intake.causes == (), "others' runs are taken"
        ledger.opened.set()
        await until_calls(ledger, 7)
