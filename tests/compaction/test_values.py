"""The pure parts: where a conversation is cut, what is seen of one that was, which outputs are left out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from behest.v1.definition_pb2 import Compaction, Pruning
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolCall, ToolResult
from behestd.core import compaction, compaction_call, pruning
from behestd.core.compaction import Need, Room, cut, is_summary, room, seen
from behestd.core.estimate import estimate, estimate_chat
from behestd.core.times import duration
from behestd.core.window import is_valid

USER, ASSISTANT, TOOL = Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_TOOL
ANY = Room(tail_tokens=0)


def said(role: Role.ValueType, text: str, message_id: str = "") -> Message:
    """A message of one text."""
    return Message(id=message_id, role=role, parts=[Part(text=TextPart(text=text))])


def turns(plan: Sequence[tuple[int, int]]) -> list[Message]:
    """A valid conversation: for each pair an input and an answer of a size, with so many calls between them."""
    messages: list[Message] = []
    for turn, (calls, size) in enumerate(plan):
        messages.append(said(USER, "u" * size))
        if calls:
            ids = [f"call_{turn}_{index}" for index in range(calls)]
            asked = [Part(tool_call=ToolCall(id=call_id, name="look", arguments_json="{}")) for call_id in ids]
            answers = [
                Part(tool_result=ToolResult(call_id=call_id, name="look", parts=[Part(text=TextPart(text="r" * size))]))
                for call_id in ids
            ]
            messages += [Message(role=ASSISTANT, parts=asked), Message(role=TOOL, parts=answers)]
        messages.append(said(ASSISTANT, "a" * size))
    for index, message in enumerate(messages):
        message.id = f"msg_{index}"
    return messages


plans = some.lists(some.tuples(some.integers(0, 3), some.integers(0, 400)), min_size=0, max_size=12)
rooms = some.builds(
    Room,
    tail_tokens=some.integers(0, 2000),
    tail_messages=some.integers(0, 20),
    prompt_tokens=some.none() | some.integers(-10, 2000),
    least_tokens=some.integers(0, 500),
)


@settings(deadline=None, max_examples=60)
@given(plans, rooms, some.integers(0, 40))
def test_a_cut_parts_no_call_from_its_result_and_keeps_the_last_message(
    plan: list[tuple[int, int]], bounds: Room, behind: int
) -> None:  # C074
    messages = turns(plan)
    messages = messages[: len(messages) - behind] if behind < len(messages) else messages

    count = cut(messages, bounds, estimate, estimate)

    assert 0 <= count < max(len(messages), 1)
    if count:
        assert messages[count].role != TOOL
        assert is_valid(messages[:count])
        assert sum(map(estimate, messages[:count])) >= bounds.least_tokens
        assert bounds.prompt_tokens is None or sum(map(estimate, messages[:count])) <= bounds.prompt_tokens


@settings(deadline=None, max_examples=60)
@given(plans, some.integers(0, 3000), some.integers(1, 20))
def test_the_tail_is_as_long_as_its_bounds_allow(plan: list[tuple[int, int]], tokens: int, most: int) -> None:
    messages = turns(plan)
    count = cut(messages, Room(tail_tokens=tokens, tail_messages=most), estimate, estimate)

    def fits(start: int) -> bool:
        return sum(map(estimate, messages[start:])) <= tokens and len(messages) - start <= most

    starts = [start for start in range(1, len(messages)) if messages[start].role != TOOL]
    assert count == next((start for start in starts if fits(start)), starts[-1] if starts else 0)


def test_a_summary_alone_is_not_summarised_again() -> None:
    summary = compaction_call.summary_of("notes", "msg_9", "seed")

    assert cut([summary, said(USER, "hello")], ANY, estimate, estimate) == 0
    assert cut([summary, said(USER, "hello"), said(ASSISTANT, "hi")], ANY, estimate, estimate) == 2


def test_what_is_too_long_to_be_summarised_at_once_is_summarised_in_part() -> None:
    messages = turns([(0, 400)] * 10)
    each = estimate(messages[0])

    assert cut(messages, Room(tail_tokens=0, prompt_tokens=5 * each), estimate, estimate) == 5
    assert cut(messages, Room(tail_tokens=0, prompt_tokens=each - 1), estimate, estimate) == 0


@settings(deadline=None, max_examples=60)
@given(plans, some.data())
def test_what_is_seen_begins_with_the_latest_summary_and_goes_on_where_it_ends(
    plan: list[tuple[int, int]], data: some.DataObject
) -> None:
    messages = turns(plan)
    history, latest, start = list(messages), None, 0
    for number in range(data.draw(some.integers(0, 3))):
        if start >= len(messages):
            break
        upto = data.draw(some.integers(start, len(messages) - 1))
        latest = compaction_call.summary_of(f"notes {number}", messages[upto].id, str(number))
        place = data.draw(some.integers(history.index(messages[upto]) + 1, len(history)))
        history.insert(max(place, 1 + max((at for at, m in enumerate(history) if is_summary(m)), default=-1)), latest)
        start = upto + 1

    found = seen(history)

    assert found == ((latest, *messages[start:]) if latest is not None else tuple(messages))
    assert seen(found) == found


def test_a_history_whose_oldest_part_is_not_there_is_seen_behind_its_summary() -> None:
    messages = turns([(0, 5), (0, 5)])
    summary = compaction_call.summary_of("notes", "msg_long_gone", "seed")

    assert seen([*messages, summary]) == (summary, *messages)


# --- rooms and policies ---


def test_a_call_that_was_refused_is_to_be_halved_whatever_is_known_of_the_window() -> None:
    policy = compaction.in_force(Compaction())

    unknown = room(policy, Need(0, 1000, is_reactive=True), 0)
    assert (unknown.tail_tokens, unknown.least_tokens, unknown.prompt_tokens) == (250, 0, 675)
    assert room(policy, Need(100_000, 1000, is_reactive=True), 0).tail_tokens == 250
    assert room(policy, Need(8_000, 7_000), 0).tail_tokens == 2_000


def test_the_more_of_a_call_cannot_be_summarised_the_less_of_the_rest_stays() -> None:
    policy = compaction.in_force(Compaction(tail_tokens=3_000))

    assert room(policy, Need(8_000, 7_000), 0).tail_tokens == 2_700
    assert room(policy, Need(8_000, 7_000, fixed=4_000), 0).tail_tokens == 700
    assert room(policy, Need(8_000, 7_000, fixed=6_000), 0).tail_tokens == 0


def test_an_agents_policy_goes_over_the_operators_and_that_over_the_defaults() -> None:
    operator = Compaction(threshold=0.5, timeout=duration(1.5), model="a/b")
    found = compaction.in_force(Compaction(threshold=0.6, timeout=duration(2)), operator)

    assert (found.threshold, found.model, found.failures) == (0.6, "a/b", 3)
    assert (found.timeout.seconds, found.timeout.nanos) == (2, 0)
    assert not compaction.in_force(Compaction(enabled=False), operator).enabled


# --- the call ---


def test_the_conversation_is_told_as_data_between_two_texts_of_ours() -> None:
    messages = turns([(1, 10)])
    chat = compaction_call.chat(messages, compaction.DEFAULTS, "a/b", 8_000)

    assert [message.role for message in chat.messages] == [Role.ROLE_SYSTEM, USER, ASSISTANT, USER]
    told = chat.messages[1].parts[0].text.text
    assert told == "[user] uuuuuuuuuu\n\n[assistant calls look] {}\n\n[look] rrrrrrrrrr\n\n[assistant] aaaaaaaaaa"
    assert chat.messages[3].parts[0].text.text == compaction_call.INSTRUCTIONS
    assert chat.sampling.max_output_tokens == 1000
    assert not chat.tools


def test_every_kind_of_part_is_told_and_none_is_told_at_length() -> None:
    parts = [
        Part(text=TextPart(text="x" * 50_000)),
        Part(json={"json": "[1]"}),  # type: ignore[arg-type]
        Part(image={"uri": "https://example.com/a.png"}),  # type: ignore[arg-type]
        Part(reasoning={"text": "hm"}),  # type: ignore[arg-type]
    ]
    result = ToolResult(name="look", is_error=True, parts=[Part(image={"data": b"1"}), Part(json={"json": "2"})])  # type: ignore[arg-type]
    told = compaction_call.rendered(Message(role=USER, parts=[*parts, Part(tool_result=result), Part()]), 100)

    assert told.splitlines() == [
        f"[user] {'x' * 50} … {'x' * 50}",
        "[user] [1]",
        "[user] (image)",
        "[look failed] (image) 2",
    ]


@settings(deadline=None, max_examples=60)
@given(plans, some.sampled_from([0, 512, 4_096, 200_000]))
def test_a_prompt_is_never_longer_than_it_was_reckoned_to_be(plan: list[tuple[int, int]], window: int) -> None:
    messages = turns(plan)
    reckoned = sum(map(compaction_call.in_prompt(window), messages))
    empty = estimate_chat(compaction_call.chat([], compaction.DEFAULTS, "a/b", window))

    # What stands between messages, and rounding.
    slack = len(messages) + 1
    assert estimate_chat(compaction_call.chat(messages, compaction.DEFAULTS, "a/b", window)) <= empty + reckoned + slack


# --- pruning ---

SMALL = Pruning(enabled=True, keep_turns=2, output_bytes=100, block_turns=3)


def outputs(messages: Sequence[Message]) -> list[str]:
    """The texts of all outputs."""
    return [
        inner.text.text
        for message in messages
        for part in message.parts
        if part.HasField("tool_result")
        for inner in part.tool_result.parts
    ]


def test_a_large_output_of_long_ago_is_a_line_and_the_original_stays() -> None:  # C076
    messages = turns([(1, 500), (1, 5), *[(0, 10)] * 6])
    before = [Message.FromString(message.SerializeToString()) for message in messages]

    found = pruning.prune(messages, SMALL)

    assert outputs(found) == ["[output of look, 500 bytes, left out; kept in message msg_2]", "rrrrr"]
    assert is_valid(found)
    assert list(messages) == before
    assert all(new is old for new, old in zip(found, messages, strict=True) if new.role != TOOL)


def test_an_output_that_an_artifact_holds_is_named_by_it() -> None:
    messages = turns([(1, 500), *[(0, 10)] * 6])
    messages[2].parts[0].tool_result.artifact_id = "art_1"

    assert outputs(pruning.prune(messages, SMALL)) == ["[output of look, 500 bytes, left out; kept as artifact art_1]"]


@settings(deadline=None, max_examples=60)
@given(some.lists(some.tuples(some.integers(0, 2), some.integers(0, 600)), min_size=1, max_size=20))
def test_what_is_left_out_changes_in_blocks_only_and_never_comes_back(plan: list[tuple[int, int]]) -> None:
    whole, changes, last = turns(plan), 0, list[Message]()
    for end in range(1, len(whole) + 1):
        found = list(pruning.prune(whole[:end], SMALL))
        assert len(found) == end
        assert [outputs([message]) for message in found[-1:]] == [
            outputs([message]) for message in whole[end - 1 : end]
        ]
        changes += found[: end - 1] != last
        last = found
    answers = sum(message.role == ASSISTANT for message in whole)
    assert changes <= max(answers - SMALL.keep_turns, 0) // SMALL.block_turns


@pytest.mark.parametrize("policy", [Pruning(), Pruning(enabled=True, keep_turns=1000, output_bytes=1, block_turns=1)])
def test_nothing_is_left_out_where_that_is_off_or_nothing_is_old(policy: Pruning) -> None:
    messages = turns([(1, 500)] * 10)

    assert pruning.prune(messages, policy) is messages


def test_an_agents_pruning_goes_over_the_operators_and_that_over_the_defaults() -> None:
    found = pruning.in_force(Pruning(keep_turns=1), Pruning(keep_turns=2, output_bytes=7))

    assert (found.enabled, found.keep_turns, found.output_bytes, found.block_turns) == (True, 1, 7, 10)
