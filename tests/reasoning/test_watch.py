"""Deltas of several attempts at once: each between its own events, whole for every watcher, whoever is slow."""

from __future__ import annotations

import asyncio
import random
import weakref
from dataclasses import dataclass, field

import pytest

from behest.v1.chat_service_pb2 import ChatDelta
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.graph_pb2 import Graph, GraphNode
from behest.v1.message_pb2 import ToolCall
from behest.v1.run_event_pb2 import RunCreated
from behest.v1.run_service_pb2 import WatchRunRequest, WatchRunResponse
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Progress
from behestd.core.nodes import Lane
from behestd.core.run import start
from behestd.core.state import Attempt, Call, Head, Run, Step, replace
from behestd.log import frames
from behestd.log.memory import MemoryStore
from behestd.log.store import RunRow
from behestd.log.tail import Tail
from behestd.runtime.live import FRAME_CHARACTERS, Deltas
from behestd.service.watch import Cursor
from behestd.tools.function import Context
from tests.reasoning.mind import thinking
from tests.reasoning.wide import SAYS, WORK, begin, wide
from tests.runs.scenes import OPEN, PURE, kind_of, only, tools

RUN = "run_1"
Key = tuple[int, int]
"""(step, attempt) of a stretch."""


def graph_run() -> Run:
    """A run with a graph that has begun nothing yet."""
    definition = RunDefinition(graph=Graph(nodes=[GraphNode(id="answer", operator="answer")]))
    return start(RUN, RunCreated(session_id="ses_1", namespace="default"), definition, 1)


def asking(step: int, attempt: int) -> Step:
    """A step whose model is asked."""
    return Step(number=step, attempts=attempt, open=Attempt(attempt, "scripted/echo", 0, 0))


def calling(step: int) -> Step:
    """A step whose tools are at work."""
    return Step(number=step, answered=True, calls=(Call(ToolCall(id=f"call_{step}", name="look"), None),))


@dataclass
class Watcher:
    """One who watches, and what it was told."""

    cursor: Cursor
    due: set[Key]
    """The stretches that it must be told from their start."""
    told: dict[Key, str] = field(default_factory=dict)
    sequence: int = 0


@dataclass
class Stage:
    """A live run whose driver is the test, and those who watch it."""

    run: Run
    tail: Tail = field(default_factory=lambda: Tail("default", RUN))
    lanes: dict[int, Step] = field(default_factory=dict)
    whole: dict[Key, str] = field(default_factory=dict)
    """What each stretch has held by now."""
    spans: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """The last event of the commit that opened a stretch, and the first of the one that closed it, 0 for none."""
    watchers: list[Watcher] = field(default_factory=list)
    is_here: bool = True
    """Whether its driver has taken the run up."""

    def __post_init__(self) -> None:
        self.deltas = Deltas(self.tail.pulse)

    # --- the driver ---

    def plan(self, lanes: dict[int, Step], events: int, state: int = RunState.RUN_STATE_RUNNING) -> Run:
        """The run after a commit of so many events."""
        assert self.run.nodes is not None
        nodes = replace(self.run.nodes, lanes={visit: Lane(visit, step) for visit, step in lanes.items()})
        return replace(self.run, state=state, nodes=nodes, head=Head(self.tail.head + events))

    def keep(self, after: Run, lanes: dict[int, Step]) -> None:
        """Let a commit become durable."""
        first, last = self.tail.head + 1, after.head.sequence
        events = [Event(run_id=RUN, sequence=number).SerializeToString() for number in range(first, last + 1)]
        self.tail.advance(frames.chunk(first, events), row(after))
        self.run, self.lanes = after, lanes
        due = {key_of(step) for step in lanes.values() if step.number} if not after.is_ended else set()
        for key, (opened, closed) in self.spans.items():
            if not closed and key not in due:
                self.spans[key] = (opened, first)
        for key in due - self.spans.keys():
            self.spans[key], self.whole[key] = (last, 0), ""
            for watcher in self.watchers:
                watcher.due.add(key)

    def commit(self, lanes: dict[int, Step], events: int = 1, state: int = RunState.RUN_STATE_RUNNING) -> None:
        """Commit so many events, after which these steps are open, by the visits of their nodes."""
        after = self.plan(lanes, events, state)
        self.deltas.follow([object()] * events, after)
        self.keep(after, lanes)

    def say(self, key: Key, text: str) -> None:
        """Have an open attempt, or tool, say something."""
        self.whole[key] += text
        if key[1]:
            self.deltas.of(*key).add([ChatDelta(text=text)])
        else:
            self.deltas.of_call(self.run, f"call_{key[0]}").add_progress(f"call_{key[0]}", 1, Progress(text=text))

    @property
    def open(self) -> list[Key]:
        """What is open as far as everybody can know."""
        return [key for key, (_, closed) in self.spans.items() if not closed]

    # --- those who watch ---

    def watch(self, after: int = 0) -> Watcher:
        """Begin to watch."""
        found = lambda: self if self.is_here else None  # noqa: E731  # all that it needs of a driver
        cursor = Cursor(self.tail, MemoryStore(), after, found)  # type: ignore[arg-type]
        watcher = Watcher(cursor, set(self.open), sequence=after)
        self.watchers.append(watcher)
        return watcher

    async def read(self, watcher: Watcher) -> bool:
        """Read a frame and hold it against the promises. Whether there was one."""
        data = await watcher.cursor.next()
        frame = WatchRunResponse.FromString(data)
        for event in frame.events:
            assert event.sequence == watcher.sequence + 1
            watcher.sequence = event.sequence
        for delta in frame.deltas:
            key = (delta.step, 0 if delta.call_id else delta.attempt)
            opened, closed = self.spans[key]
            assert opened <= watcher.sequence, "a delta comes before the event that it follows"
            assert not closed or watcher.sequence < closed, "a delta comes after the event that voids it"
            watcher.told[key] = watcher.told.get(key, "") + (delta.text or delta.tool_progress.text)
        return bool(data)

    async def catch_up(self, watcher: Watcher) -> None:
        """Read all there is."""
        while await self.read(watcher):
            pass


def key_of(step: Step) -> Key:
    return (step.number, step.open.number if step.open is not None else 0)


def row(run: Run) -> RunRow:
    return RunRow("default", RUN, "ses_1", "", run.state, 1, run.head.sequence, b"", 1, 1, b"", True, run.is_ended, 0)


async def test_attempts_of_several_nodes_are_told_beside_each_other() -> None:
    stage = Stage(graph_run())
    early = stage.watch()
    stage.commit({1: asking(1, 1), 2: asking(2, 1)}, events=4)
    for number in range(3):
        stage.say((1, 1), f"a{number} ")
        stage.say((2, 1), f"b{number} ")
        await stage.catch_up(early)
    late = stage.watch()
    await stage.catch_up(late)
    assert early.told == late.told == {(1, 1): "a0 a1 a2 ", (2, 1): "b0 b1 b2 "}


async def test_who_watches_before_the_driver_is_here_is_told_what_is_open_once_it_is() -> None:
    stage = Stage(graph_run())
    stage.is_here = False
    watcher = stage.watch()
    stage.commit({1: asking(1, 1)})
    await stage.catch_up(watcher)
    stage.say((1, 1), "first ")
    stage.is_here = True
    stage.say((1, 1), "second")
    await stage.catch_up(watcher)
    assert watcher.told == {(1, 1): "first second"}


async def test_an_attempt_that_ends_does_not_end_what_others_say() -> None:
    stage = Stage(graph_run())
    watcher = stage.watch()
    stage.commit({1: asking(1, 1), 2: asking(2, 1)}, events=2)
    stage.say((1, 1), "quick")
    stage.say((2, 1), "slow ")
    stage.commit({1: calling(1), 2: asking(2, 1)})
    stage.say((2, 1), "and slower ")
    stage.say((1, 0), "at work")
    stage.commit({1: asking(3, 1), 2: asking(2, 1)})
    stage.say((2, 1), "but sure")
    await stage.catch_up(watcher)
    assert watcher.told == {(1, 1): "quick", (2, 1): "slow and slower but sure", (1, 0): "at work"}


async def test_a_new_stream_begins_with_what_is_open_and_nothing_else() -> None:
    stage = Stage(graph_run())
    stage.commit({1: asking(1, 1), 2: asking(2, 1)}, events=2)
    stage.say((1, 1), "over")
    stage.say((2, 1), "open")
    stage.commit({2: asking(2, 1)})
    for after in range(stage.tail.head + 1):
        watcher = stage.watch(after)
        await stage.catch_up(watcher)
        assert watcher.told == {(2, 1): "open"}


async def test_what_a_failed_commit_would_have_ended_goes_on_for_everybody() -> None:
    stage = Stage(graph_run())
    early = stage.watch()
    stage.commit({1: asking(1, 1), 2: asking(2, 1)}, events=2)
    stage.say((1, 1), "before ")
    await stage.catch_up(early)
    mark = stage.deltas.mark()
    stage.deltas.follow([object()], stage.plan({1: calling(1), 2: asking(2, 1)}, 1))
    late = stage.watch()
    for watcher in (early, late):
        await stage.catch_up(watcher)
    stage.deltas.go_back(mark)
    stage.say((1, 1), "after")
    stage.commit({1: calling(1), 2: asking(2, 1)})
    stage.say((1, 0), "working")
    for watcher in (early, late):
        await stage.catch_up(watcher)
        assert watcher.told == {(1, 1): "before after", (1, 0): "working"}


async def test_the_tools_of_nodes_that_were_at_work_when_an_owner_left_are_shown_by_the_next() -> None:
    stage = Stage(graph_run())
    after = stage.plan({1: asking(1, 1), 2: calling(2), 3: calling(3)}, 5)
    stage.keep(after, {2: calling(2), 3: calling(3)})
    stage.deltas.adopt(after)
    watcher = stage.watch()
    stage.say((2, 0), "still ")
    stage.say((3, 0), "here")
    stage.commit({1: asking(1, 2), 2: calling(2), 3: calling(3)}, events=2)
    stage.say((2, 0), "at it")
    stage.say((1, 2), "again")
    await stage.catch_up(watcher)
    assert watcher.told == {(2, 0): "still at it", (3, 0): "here", (1, 2): "again"}


async def test_a_frame_holds_no_more_for_many_attempts_and_none_comes_too_short() -> None:
    stage = Stage(graph_run())
    lanes = {visit: asking(visit, 1) for visit in range(1, 9)}
    stage.commit(lanes, events=8)
    watcher = stage.watch()
    for visit in lanes:
        for _ in range(8):
            stage.say((visit, 1), "x" * (FRAME_CHARACTERS // 8))
    sizes = []
    while data := await watcher.cursor.next():
        sizes.append(len(data))
        first = min(lanes)
        stage.say((first, 1), "y" * (FRAME_CHARACTERS // 4))
        if len(sizes) > 4 * len(lanes):
            break
        frame = WatchRunResponse.FromString(data)
        for delta in frame.deltas:
            watcher.told[delta.step, delta.attempt] = watcher.told.get((delta.step, delta.attempt), "") + delta.text
    assert max(sizes) < 2 * FRAME_CHARACTERS
    assert all(watcher.told[visit, 1].startswith("x" * FRAME_CHARACTERS) for visit in lanes)


async def test_what_is_told_and_past_is_kept_for_nobody() -> None:
    stage = Stage(graph_run())
    watcher = stage.watch()
    stage.commit({1: asking(1, 1), 2: asking(2, 1)}, events=2)
    held = []
    for attempt in range(1, 50):
        held.append(stage.deltas.of(1, attempt))
        stage.say((1, attempt), "told")
        stage.commit({1: asking(1, attempt + 1), 2: asking(2, 1)})
        await stage.catch_up(watcher)
    gone = [weakref.ref(stretch) for stretch in held]
    held.clear()
    assert sum(each() is not None for each in gone) <= 2


def moved(lanes: dict[int, Step], chance: random.Random, steps: int) -> dict[int, Step]:
    """The steps of some nodes gone on: to another attempt, to their tools, or to the next step."""
    moving = chance.sample(sorted(lanes), chance.randint(1, len(lanes)))
    for number, visit in enumerate(moving, steps + 1):
        step = lanes[visit]
        if step.open is not None and chance.random() < 0.5:
            again = asking(step.number, step.open.number + 1)
            lanes = {**lanes, visit: chance.choice([again, calling(step.number)])}
        else:
            lanes = {**lanes, visit: asking(number, 1)}
    return lanes


async def fail(stage: Stage, lanes: dict[int, Step], chance: random.Random) -> None:
    """Have a commit fail, while some watch and others begin to."""
    mark = stage.deltas.mark()
    stage.deltas.follow([object()] * 2, stage.plan(lanes, 2))
    stage.watch(chance.randint(0, stage.tail.head))
    for watcher in chance.sample(stage.watchers, len(stage.watchers) // 2):
        await stage.read(watcher)
    stage.deltas.go_back(mark)


async def play(stage: Stage, chance: random.Random, number: int) -> None:
    """Let something happen."""
    lanes, steps = stage.lanes, number * 10
    match chance.choice(["begin", "begin", "move", "move", "fail", "end", "say", "say", "say", "read", "watch"]):
        case "begin" if len(lanes) < 8:
            begun = chance.choice([asking(steps, 1), calling(steps), Step()])
            stage.commit({**lanes, number: begun}, chance.randint(1, 4))
        case "move" if lanes:
            stage.commit(moved(lanes, chance, steps), chance.randint(1, 4))
        case "fail" if lanes:
            await fail(stage, moved(lanes, chance, steps), chance)
        case "end" if lanes:
            gone = chance.choice(sorted(lanes))
            stage.commit({visit: step for visit, step in lanes.items() if visit != gone}, chance.randint(1, 2))
        case "say" if stage.open:
            stage.say(chance.choice(stage.open), f"{chance.random()} ")
        case "read":
            await stage.read(chance.choice(stage.watchers))
        case "watch" if len(stage.watchers) < 12:
            stage.watch(chance.randint(0, stage.tail.head))


@pytest.mark.parametrize("seed", range(20))
async def test_every_watcher_is_told_each_open_attempt_whole_and_in_its_place(seed: int) -> None:
    chance = random.Random(seed)
    stage = Stage(graph_run())
    stage.watch()
    for number in range(1, 300):
        await play(stage, chance, number)
    stage.commit({}, 2, RunState.RUN_STATE_COMPLETED)
    for watcher in stage.watchers:
        await stage.catch_up(watcher)
        assert watcher.sequence == stage.tail.head
        assert {key: text for key, text in watcher.told.items() if text} == {
            key: stage.whole[key] for key in watcher.due if stage.whole[key]
        }


# --- over a real channel ---


async def paint(context: Context, strokes: int) -> str:
    """Paint, showing each stroke."""
    for stroke in range(strokes):
        context.progress(f"stroke {stroke}")
        await asyncio.sleep(0.002)
    return "painted"


SPEAKING = {
    **SAYS,
    "reason": "/delay 1 /words 60",
    "generate": "/words 400",
    "explain": "/reasoning thinking it over /delay 2 /say so that all know",
    "act": '/tool paint {"strokes": 20}',
}


def check_places(events: list[Event], delta: Delta) -> None:
    """Check that a delta comes while its attempt, or its call, goes on."""
    open_attempts: set[Key] = set()
    calls: dict[str, int] = {}
    for event in events:
        kind = kind_of(event)
        payload = getattr(event, kind)
        if kind == "model_requested":
            open_attempts.add((payload.step, payload.attempt))
        elif kind in ("model_completed", "model_failed", "model_superseded"):
            open_attempts.discard((payload.step, payload.attempt))
        if kind == "model_completed":
            asked = (part.tool_call for part in payload.message.parts if part.HasField("tool_call"))
            calls |= {call.id: payload.step for call in asked}
    if delta.call_id:
        assert calls[delta.call_id] == delta.step
    else:
        assert (delta.step, delta.attempt) in open_attempts


@pytest.mark.parametrize("pause_seconds", [0.0, 0.01])
async def test_a_stream_shows_what_several_nodes_do_at_once(pause_seconds: float) -> None:  # C129 I16
    """Every text is whole and in its place."""
    events: list[Event] = []
    told: dict[Key, str] = {}
    async with thinking(SPEAKING, tools=tools((paint, PURE)), operator=OPEN) as (served, mind):
        gate = mind.shut("analyze")
        run = await begin(served, wide(*WORK, "act"))
        stream = served.client.stubs.runs.WatchRun(WatchRunRequest(run_id=run.id))
        async with asyncio.timeout(30):
            async for frame in stream:
                events += frame.events
                for delta in frame.deltas:
                    check_places(events, delta)
                    key = (delta.step, 0 if delta.call_id else delta.attempt)
                    told[key] = told.get(key, "") + delta.text + delta.tool_progress.text
                gate.set()
                await asyncio.sleep(pause_seconds)

    assert kind_of(events[-1]) == "run_completed"
    for completed in only(events, "model_completed"):
        text = "".join(part.text.text for part in completed.message.parts)
        assert told.get((completed.step, completed.attempt), "") == text
    assert sum(text.count("stroke") for key, text in told.items() if not key[1]) == 20
    began = [event.sequence for event in events if kind_of(event) == "model_requested"][1:5]
    ended = [event.sequence for event in events if kind_of(event) == "model_completed"][1:5]
    assert max(began) < min(ended), "they are at work beside each other"


async def test_a_new_stream_of_a_graph_begins_each_open_node_anew() -> None:
    async with thinking({**SAYS, **dict.fromkeys(("reason", "generate"), "/say one two /stall")}) as (served, _):
        run = await begin(served, wide("reason", "generate"))
        for _ in range(2):
            stream, told = served.client.stubs.runs.WatchRun(WatchRunRequest(run_id=run.id)), dict[int, str]()
            async with asyncio.timeout(20):
                async for frame in stream:
                    for delta in frame.deltas:
                        told[delta.step] = told.get(delta.step, "") + delta.text
                    if list(told.values()).count("one two") == 2:
                        break
            stream.cancel()
        await served.client.runs.cancel(run.id)
