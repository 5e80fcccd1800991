"""A run without tools, seen over a real channel."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256

import pytest

from behest.client import Client
from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind, Sampling, ToolChoice, ToolChoiceMode
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import ImagePart, JsonPart, Part, Role, TextPart
from behest.v1.run_state_pb2 import DurabilityClass, RunState
from tests import daemons
from tests.daemons import Served
from tests.runs.scenes import PURE, events_of, kinds, only, text_of, tools, updates_of

HAPPY = [
    "run_created",
    "run_claimed",
    "run_started",
    "context_built",
    "model_requested",
    "model_completed",
    "run_completed",
]


async def test_a_run_goes_from_created_to_completed_with_its_deltas_in_between(stored: Served) -> None:  # C042
    updates = await updates_of(stored.client.stream("hello brave new world"))

    order = [update.WhichOneof("payload") if isinstance(update, Event) else "delta" for update in updates]
    assert [kind for kind in order if kind != "delta"] == HAPPY
    assert order.index("model_requested") < order.index("delta") < order.index("model_completed")
    assert "".join(update.text for update in updates if isinstance(update, Delta)) == "hello brave new world"
    usage = only([update for update in updates if isinstance(update, Event)], "model_completed")[0].usage
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0
    assert usage.attempts == 1


async def test_get_run_tells_the_whole_outcome(stored: Served) -> None:  # C043
    run = await stored.client.run("/say four words it is /usage 1000 500", model="scripted/priced")
    await run.result()

    got = await stored.client.runs.get(run.run_id)

    assert got.state == RunState.RUN_STATE_COMPLETED
    assert got.output.text == "four words it is"
    assert got.output.finish_reason == FinishReason.FINISH_REASON_STOP
    assert [message.role for message in got.messages] == [Role.ROLE_USER, Role.ROLE_ASSISTANT]
    assert got.steps == 1
    assert (got.usage.input_tokens, got.usage.output_tokens) == (1000, 500)
    assert got.usage.cost_micro_usd == 1000 + 2 * 500
    assert list(got.models) == ["scripted/priced"]
    assert got.create_time.ToNanoseconds() <= got.start_time.ToNanoseconds() <= got.end_time.ToNanoseconds()


async def test_the_model_is_told_the_input_exactly_once(served: Served) -> None:  # C044
    output = await (await served.client.run("/dump")).result()

    assert [message["role"] for message in json.loads(output.text)["messages"]] == ["ROLE_USER"]


async def test_an_unnamed_run_is_found_at_once_by_the_ids_of_the_reply(stored: Served) -> None:  # C054
    handle = stored.client.stream("hi")
    run_id = await handle.create()

    got = await stored.client.runs.get(run_id)

    assert got.id == run_id
    assert got.session_id.startswith("ses_")
    assert got.head_sequence >= 3


async def test_parameters_of_the_chat_arrive_at_the_provider(served: Served) -> None:  # C004
    sampling = Sampling(temperature=0.25, top_p=0.5, max_output_tokens=77, stop=["END"])
    output = await (
        await served.client.run(
            "/dump",
            sampling=sampling,
            response_format=ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT),
        )
    ).result()

    told = json.loads(output.text)
    assert told["sampling"]["temperature"] == 0.25
    assert told["sampling"]["top_p"] == 0.5
    assert told["sampling"]["max_output_tokens"] == 77
    assert told["sampling"]["stop"] == ["END"]
    assert told["response_format"]["kind"] == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT
    assert json.loads(output.json) == told


async def test_the_tool_choice_arrives_at_the_provider() -> None:  # C004
    def look_up(key: str) -> str:
        """Look a thing up."""
        return key

    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        choice = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_TOOL, tool_name="look_up")
        output = await (await served.client.run("/dump", tool_choice=choice)).result()

    told = json.loads(output.text)
    assert "look_up" in json.dumps(told["tools"])
    assert "look_up" in json.dumps(told["tool_choice"])


async def test_parts_of_every_kind_are_kept_and_sent_in_order(stored: Served) -> None:  # C005
    parts = [
        Part(text=TextPart(text="/dump")),
        Part(image=ImagePart(media_type="image/png", data=b"\x89PNG not really")),
        Part(json=JsonPart(json='{"n": 12345678901234567890}')),
        Part(text=TextPart(text="/finish stop")),
    ]

    run = await stored.client.run(parts)
    told = json.loads((await run.result()).text.splitlines()[0])
    kept = (await stored.client.runs.get(run.run_id)).messages[0]

    assert list(kept.parts) == parts
    assert [kind if isinstance(kind, str) else kind["kind"] for kind in told["messages"][0]["parts"]] == [
        "text",
        "image",
        "json",
        "text",
    ]


@pytest.mark.parametrize("word", ["stop", "length", "content_filter", "refusal", "other"])
async def test_finish_reasons_round_trip(served: Served, word: str) -> None:  # C006
    run = await served.client.run(f"/say done /finish {word} /repeat")
    events = await events_of(run)
    expected = FinishReason.Value(f"FINISH_REASON_{word.upper()}")

    assert only(events, "run_completed")[0].output.finish_reason == expected
    assert (await served.client.runs.get(run.run_id)).output.finish_reason == expected


async def test_a_finish_of_tool_calls_without_a_call_ends_the_run(served: Served) -> None:  # C006
    events = await events_of(await served.client.run("/say nothing to call /finish tool_calls"))

    assert only(events, "model_completed")[0].finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    assert only(events, "run_completed")[0].output.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS


async def test_every_field_of_the_envelope_is_filled_and_the_chain_holds(stored: Served) -> None:  # C089
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    stub = stored.client.stubs.runs
    order = stored.client.stream("hello", labels={"colour": "blue"})._subject.order
    call = stub.StreamRun(order, metadata=(("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),))
    async with asyncio.timeout(30):
        events = [event async for frame in call for event in frame.events]

    digest = b""
    for sequence, event in enumerate(events, start=1):
        assert event.sequence == sequence
        assert event.run_id == events[0].run_id
        assert event.session_id == events[0].run_created.session_id
        assert event.epoch == (0 if sequence == 1 else 1)
        assert event.record_time.seconds > 1_600_000_000
        assert event.trace_id == trace
        assert event.prev_hash == digest
        digest = sha256(event.SerializeToString()).digest()
    assert len({event.event_id for event in events}) == len(events)
    created = events[0].run_created
    durable = {"memory": DurabilityClass.DURABILITY_CLASS_NONE, "sqlite": DurabilityClass.DURABILITY_CLASS_LOCAL}
    assert created.durability_class == durable[stored.daemon.log.store.name]
    assert created.namespace == "default"
    assert created.principal == "local"
    assert created.labels == {"colour": "blue"}
    assert len(created.definition_hash) == 32
    assert created.input.parts[0].text.text == "hello"


async def test_a_hundred_runs_at_once_each_have_a_gap_free_log(stored: Served) -> None:  # C084 C055
    handles = [stored.client.stream(f"/delay 1 /say run number {number} of many") for number in range(100)]
    logs: list[list[Event]] = [[] for _ in handles]

    async def follow(number: int) -> None:
        logs[number] = await events_of(handles[number], seconds=30)

    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(follow(number))

    for number, events in enumerate(logs):
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert {event.run_id for event in events} == {handles[number].run_id}
        assert only(events, "run_completed")[0].output.text == f"run number {number} of many"
    assert len({handle.run_id for handle in handles}) == 100


async def test_a_run_without_tools_is_at_most_three_commits(stored: Served) -> None:
    await events_of(stored.client.stream("warm"))
    before = stored.daemon.log.statistics().batches

    await events_of(stored.client.stream("one /say answer"))

    assert stored.daemon.log.statistics().batches - before <= 3


async def test_a_second_run_of_a_session_is_told_the_first_one_s_messages(stored: Served) -> None:  # C044 C050
    first = await stored.client.run("my name is Ada")
    await first.result()
    session_id = (await stored.client.runs.get(first.run_id)).session_id

    second = await stored.client.run("/dump", session_id=session_id)
    told = json.loads((await second.result()).text)

    assert [message["role"] for message in told["messages"]] == ["ROLE_USER", "ROLE_ASSISTANT", "ROLE_USER"]
    kept = (await stored.client.runs.get(second.run_id)).messages
    assert next(text_of(message) for message in kept) == "/dump"
    assert (await stored.client.runs.get(second.run_id)).session_index == 2


async def test_nothing_of_a_run_is_seen_twice_by_two_clients(served: Served) -> None:
    handle = await served.client.run("/delay 5 /say a b c d e f g")
    async with Client(served.client.address) as other:
        mine, theirs = await asyncio.wait_for(
            asyncio.gather(events_of(handle), events_of(other.watch(handle.run_id))), timeout=5
        )

    assert [event.SerializeToString() for event in mine] == [event.SerializeToString() for event in theirs]
    assert kinds(mine) == HAPPY
