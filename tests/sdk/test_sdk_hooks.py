"""Hooks: the order that they are asked in, how their answers become one, and that it is carried out."""

from __future__ import annotations

import asyncio
import logging

import pytest

from behest.errors import RunCancelledError
from behest.hooks import Action, Approve, Cancel, Deny, Hooks, Send, merged
from behest.v1.event_pb2 import Event
from behest.v1.run_event_pb2 import RunCompleted, RunStarted
from tests.approvals.scenes import ALL_STATES, CAREFUL, DENIED, asking, listed, pay, payments
from tests.daemons import Served, serve

SECONDS = 20
ENDLESS = "/delay 20 /words 100000"
STARTED = Event(run_id="run_1", event_id="evt_1", run_started=RunStarted())


async def test_hooks_are_asked_by_descending_priority_and_then_as_registered() -> None:  # C097
    hooks, asked = Hooks(), []
    for name, priority in (("a", 0), ("b", 10), ("c", -5), ("d", 10), ("e", 0)):
        hooks.on("run_started", priority=priority)(lambda _, name=name: asked.append(name))
    assert await hooks.ask(STARTED) == []
    assert asked == ["b", "d", "a", "e", "c"]


async def test_hooks_are_asked_about_their_kinds_alone() -> None:  # C097
    hooks, asked = Hooks(), []
    hooks.on("run_started")(lambda _: asked.append("started"))
    hooks.on(["run_started", "run_completed"])(lambda _: asked.append("both"))
    assert hooks.kinds == {"run_started", "run_completed"}
    await hooks.ask(Event(run_completed=RunCompleted()))
    assert asked == ["both"]
    hooks.on("")(lambda _: asked.append("all"))
    assert hooks.kinds == frozenset()
    with pytest.raises(ValueError):
        hooks.on("run_exploded")


async def test_a_hook_that_raises_or_answers_nonsense_is_logged_and_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:  # C097
    hooks = Hooks()

    @hooks.on("run_started", priority=3)
    def broken(event: Event) -> Action:
        raise ZeroDivisionError

    @hooks.on("run_started", priority=2)
    async def later_broken(event: Event) -> Action:
        raise LookupError

    @hooks.on("run_started", priority=1)
    def nonsense(event: Event) -> str:
        return "cancel"

    @hooks.on("run_started")
    async def sound(event: Event) -> list[Action]:
        return [Send("one"), Send("two")]

    with caplog.at_level(logging.ERROR, logger="behest.on"):
        assert await hooks.ask(STARTED) == [Send("one"), Send("two")]
    assert len([record for record in caplog.records if record.name.startswith("behest")]) == 3


@pytest.mark.parametrize(
    ("answers", "whole"),
    [
        ([], []),
        ([Send("a"), Send("b")], [Send("a"), Send("b")]),
        ([Send("a"), Cancel("first"), Cancel("second", force=True)], [Cancel("first", force=True)]),
        ([Approve("yes"), Deny("no"), Deny("never")], [Deny("no")]),
        ([Approve("yes", '{"a": 1}'), Approve("yes", '{"a": 2}')], [Approve("yes", '{"a": 1}')]),
        ([Send("a"), Approve()], [Approve(), Send("a")]),
        ([Deny("no"), Send("a"), Cancel()], [Deny("no"), Cancel()]),
    ],
)
def test_many_answers_become_one(answers: list[Action], whole: list[Action]) -> None:  # C097
    assert merged(answers) == whole


async def test_a_cancel_is_carried_out(served: Served) -> None:  # C097
    hooks, seen = Hooks(), []

    @hooks.on("model_requested", priority=1)
    def broken(event: Event) -> Action:
        raise ZeroDivisionError

    @hooks.on("model_requested")
    def enough(event: Event) -> Action:
        seen.append(event.run_id)
        return Cancel("enough")

    served.client.use(hooks)
    run = await served.client.emit(ENDLESS)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(RunCancelledError):
            await run.result()
        events = [event async for event in run.events()]
    assert seen == [run.run_id]
    [asked] = [event.run_cancel_requested for event in events if event.WhichOneof("payload") == "run_cancel_requested"]
    assert asked.reason == "enough"


async def test_what_a_hook_says_reaches_its_run_once(served: Served) -> None:  # C097
    hooks = Hooks()

    @hooks.on("model_requested")
    def steer(event: Event) -> Action | None:
        return Send("and hurry") if event.model_requested.step == 1 else None

    run = await served.client.emit("/delay 20 /words 30")
    # Two of the same: the second says nothing new.
    served.client.use(hooks, run_id=run.run_id)
    served.client.use(hooks, run_id=run.run_id)
    async with asyncio.timeout(SECONDS):
        await run.result()
        events = [event async for event in run.events()]
    said = [event.input_received for event in events if event.WhichOneof("payload") == "input_received"]
    assert [part.text.text for each in said for part in each.message.parts] == ["and hurry"]


async def test_a_refusal_beats_an_approval_and_reaches_the_model() -> None:  # C097
    paid: list[tuple[str, int]] = []
    hooks = Hooks()

    @hooks.on("approval_requested", priority=10)
    def generous(event: Event) -> Action:
        return Approve("fine")

    @hooks.on("approval_requested")
    async def careful(event: Event) -> Action:
        return Deny("payments are frozen")

    async with serve(tools=payments(paid), operator=CAREFUL) as served, asyncio.timeout(SECONDS):
        served.client.use(hooks)
        run = await served.client.emit(pay("ann", 5))
        output = await run.result()
        [approval] = await listed(served.client, run_id=run.run_id, states=ALL_STATES)
    assert paid == []
    assert "payments are frozen" in output.text
    assert (approval.decision, approval.reason) == (DENIED, "payments are frozen")


async def test_an_approval_lets_the_call_go_with_the_arguments_that_it_names() -> None:  # C097
    paid: list[tuple[str, int]] = []
    hooks = Hooks()

    @hooks.on("approval_requested")
    async def smaller(event: Event) -> Action:
        return Approve("but less", '{"to": "ann", "amount": 3}')

    async with serve(tools=payments(paid), operator=CAREFUL) as served, asyncio.timeout(SECONDS):
        session = await served.client.sessions.create()
        served.client.use(hooks, session_id=session.id)
        await (await served.client.emit(pay("ann", 5), session_id=session.id)).result()
        elsewhere, _ = await asking(served.client, pay("bob", 5))
        await elsewhere.cancel()
    assert paid == [("ann", 3)]


async def test_an_action_that_is_refused_is_logged_and_skipped(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:  # C097
    hooks = Hooks()

    @hooks.on("run_completed")
    def too_late(event: Event) -> list[Action]:
        return [Send("one more thing"), Approve()]

    run = await served.client.emit("hello")
    with caplog.at_level(logging.WARNING, logger="behest.on"):
        async with asyncio.timeout(SECONDS):
            await served.client.use(hooks, run_id=run.run_id).wait()
    assert len([record for record in caplog.records if record.name.startswith("behest")]) == 2
    assert "RUN_ENDING" in caplog.text
