"""What a model sees: order of parts, limits of the history, the window, prefixes that stay, context that was given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behest.v1.chat_pb2 import Sampling
from behest.v1.context_event_pb2 import ContextBuilt
from behest.v1.context_pb2 import ContextFailurePolicy, ContextSource, ContextSourceKind, ContextTrimReason
from behest.v1.definition_pb2 import Limits, RunDefinition
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolCall, ToolResult
from behest.v1.model_pb2 import ModelLimits
from behestd.core.estimate import estimate
from behestd.core.signals import AskContext, ContextGathered, Release
from behestd.core.sources import Answer, Gathered, cut, cut_text, ordered, pinned, take, tokens_of
from behestd.core.wanted import wanted
from behestd.core.window import Window, compose, is_valid
from tests.core.stage import T0, Stage, definition, said, text_of, tool

STATIC = ContextSourceKind.CONTEXT_SOURCE_KIND_STATIC
FUNCTION = ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION
HISTORY = ContextSource(name="history", kind=ContextSourceKind.CONTEXT_SOURCE_KIND_HISTORY)
FAIL = ContextFailurePolicy.CONTEXT_FAILURE_POLICY_FAIL
MESSAGES = ContextTrimReason.CONTEXT_TRIM_REASON_MESSAGES
TOKENS = ContextTrimReason.CONTEXT_TRIM_REASON_TOKENS
WINDOW = ContextTrimReason.CONTEXT_TRIM_REASON_WINDOW


def static(name: str, text: str, **fields: Any) -> ContextSource:
    return ContextSource(name=name, kind=STATIC, text=text, **fields)


def function(name: str, **fields: Any) -> ContextSource:
    return ContextSource(name=name, kind=FUNCTION, **fields)


def called(index: int) -> list[Message]:
    """A turn of four messages: somebody speaks, the model calls, the tool answers, the model speaks."""
    call = ToolCall(id=f"call_{index}", name="look", arguments_json="{}")
    result = ToolResult(call_id=call.id, parts=[Part(text=TextPart(text=f"result {index}"))])
    return [
        said(f"question {index}"),
        Message(role=Role.ROLE_ASSISTANT, parts=[Part(tool_call=call)]),
        Message(role=Role.ROLE_TOOL, parts=[Part(tool_result=result)]),
        said(f"answer {index}", Role.ROLE_ASSISTANT),
    ]


def turns(count: int) -> list[Message]:
    return [message for index in range(count) for message in called(index)]


def windowed(tokens: int, *, answer: int = 0, **fields: Any) -> RunDefinition:
    limits = [ModelLimits(context_window_tokens=tokens, max_output_tokens=answer)]
    return definition(model_limits=limits, **fields)


def composed(pinned_to: RunDefinition, history: Sequence[Message] = (), **fields: Any) -> Window:
    run = Stage(pinned_to, begun=False, **fields).run
    return compose(run, history, "scripted/a")


def texts(window: Window) -> list[str]:
    return [text_of(message) for message in window.chat.messages]


# --- order ---


def test_static_sources_stand_before_history_and_what_is_asked_behind_it() -> None:  # C102
    sources = ordered(
        [function("news"), static("rules", "be kind"), static("facts", "it is Tuesday"), function("docs")]
    )
    assert [source.name for source in sources] == ["rules", "facts", "history", "news", "docs"]


def test_a_list_that_names_history_is_the_order() -> None:  # C102
    sources = ordered([function("news"), HISTORY, static("rules", "be kind")])
    assert [source.name for source in sources] == ["news", "history", "rules"]


def test_parts_stand_in_their_order_before_the_model() -> None:  # C102
    pinned_to = definition(sources=[static("rules", "rules"), HISTORY, static("late", "late")], instructions="system")
    window = composed(pinned_to, [said("earlier"), said("reply", Role.ROLE_ASSISTANT)])
    assert texts(window) == ["system", "rules", "earlier", "reply", "late", "hello"]
    assert set(window.tokens_by_source) == {"instructions", "rules", "history", "late", "run"}


def test_without_sources_there_is_history_alone() -> None:  # C102
    window = composed(definition(instructions="system"), [said("earlier")])
    assert texts(window) == ["system", "earlier", "hello"]
    assert set(window.tokens_by_source) == {"instructions", "history", "run"}


# --- limits of the history ---


def test_both_limits_of_the_history_hold() -> None:  # C104
    history = turns(10)
    tokens = sum(map(estimate, history[-8:]))
    few = composed(definition(limits=Limits(max_history_messages=12, max_history_tokens=tokens)), history)
    assert texts(few)[0] == "question 8"
    assert [(trim.reason, trim.messages) for trim in few.trims] == [(MESSAGES, 28), (TOKENS, 4)]
    assert few.trims[1].limit == tokens
    assert few.trimmed_messages == 32
    fewer = composed(definition(limits=Limits(max_history_messages=4, max_history_tokens=tokens)), history)
    assert texts(fewer)[0] == "question 9"
    assert [trim.reason for trim in fewer.trims] == [MESSAGES]


def test_a_limit_of_no_tokens_leaves_no_history() -> None:  # C104
    window = composed(definition(limits=Limits(max_history_tokens=0)), turns(2))
    assert texts(window) == ["hello"]
    assert window.tokens_by_source.keys() == {"run"}


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 12),
    messages=st.none() | st.integers(0, 50),
    tokens=st.none() | st.integers(0, 700),
    size=st.none() | st.integers(60, 2_000),
)
def test_calls_and_results_stay_together_whatever_is_left_out(
    count: int, messages: int | None, tokens: int | None, size: int | None
) -> None:  # C104
    limits = Limits(max_history_messages=messages, max_history_tokens=tokens)
    pinned_to = windowed(size, limits=limits) if size is not None else definition(limits=limits)
    history = turns(count)
    window = composed(pinned_to, history)
    kept = list(window.chat.messages[:-1])
    assert kept == history[len(history) - len(kept) :]
    assert is_valid(kept)
    assert not kept or kept[0].role == Role.ROLE_USER
    assert len(kept) + window.trimmed_messages == len(history)
    assert messages is None or len(kept) <= messages
    assert tokens is None or sum(map(estimate, kept)) <= tokens
    if size is not None and kept:
        assert window.input_tokens <= window.limit_tokens <= size


# --- the window ---


def test_a_window_keeps_room_for_the_answer() -> None:  # C104
    assert composed(definition()).limit_tokens == 0
    assert composed(windowed(8_000)).limit_tokens == 7_000
    assert composed(windowed(8_000, answer=400)).limit_tokens == 7_600
    assert composed(windowed(8_000, answer=400, sampling=Sampling(max_output_tokens=3_000))).limit_tokens == 5_000
    assert composed(windowed(8_000, sampling=Sampling(max_output_tokens=90_000))).limit_tokens == 1


def test_what_the_window_has_no_room_for_is_left_out_and_told() -> None:  # C104
    history = turns(100)
    window = composed(windowed(1_000), history)
    assert window.input_tokens <= window.limit_tokens
    [trim] = window.trims
    assert (trim.reason, trim.limit) == (WINDOW, window.limit_tokens - window.tokens_by_source["run"])
    assert trim.messages == len(history) - len(window.chat.messages) + 1
    assert trim.tokens + window.tokens_by_source["history"] == sum(map(estimate, history))
    assert window.whole_tokens == window.input_tokens + trim.tokens


def test_a_call_that_does_not_fit_at_all_is_not_sent() -> None:  # C104
    long = "word " * 3_000
    stage = Stage(windowed(1_000), input=said(long), given={"history": tuple(turns(3))})
    assert (stage.state, stage.reason) == ("FAILED", "PROVIDER_CONTEXT_TOO_LONG")
    assert "model_requested" not in stage.kinds
    assert "context_built" not in stage.kinds


def test_the_smallest_call_goes_ahead_without_room_for_an_answer_of_full_length() -> None:
    window = composed(windowed(1_000), input=said("word " * 850))
    assert window.limit_tokens < window.input_tokens <= 1_000
    assert not window.is_too_long


# --- prefixes ---


def bytes_of(messages: Sequence[Message]) -> bytes:
    return b"".join(b"%d:" % message.ByteSize() + message.SerializeToString() for message in messages)


def test_each_call_begins_with_the_bytes_of_the_one_before() -> None:  # C104
    """In a session instructions, static sources and tools stay the same, history and transcript only grow."""
    sources = [static("rules", "rules " * 50), HISTORY]
    pinned_to = definition(tool("look"), tool("find"), sources=sources, instructions="system")
    before, history = b"", list[Message]()
    for turn in range(5):
        window = composed(pinned_to, history, input=said(f"order {turn}"))
        data = bytes_of(window.chat.messages)
        assert data.startswith(before)
        assert bytes_of(window.chat.tools) == bytes_of(pinned_to.tools)  # type: ignore[arg-type]
        before = data
        history += [said(f"order {turn}"), *called(turn)[1:]]


def test_a_full_window_leaves_the_beginning_alone_for_several_turns() -> None:  # C104
    sources = [static("rules", "rules " * 20), HISTORY]
    pinned_to = windowed(2_000, sources=sources, instructions="system")
    head = bytes_of(composed(pinned_to).chat.messages[:2])
    starts = []
    for count in range(20, 120):
        window = composed(pinned_to, turns(count))
        assert bytes_of(window.chat.messages).startswith(head)
        assert window.input_tokens <= window.limit_tokens
        starts.append(text_of(window.chat.messages[2]))
    moved = sum(1 for one, two in pairwise(starts) if one != two)
    assert starts[-1] != starts[0]
    assert moved <= len(starts) // 4


# --- what was given ---


def gathered(stage: Stage, **messages: Sequence[str] | Answer) -> list[Any]:
    """The sources of the next step answer."""
    answers = {
        name: given if isinstance(given, Answer) else Answer(tuple(map(said, given)), elapsed_ns=1_000)
        for name, given in messages.items()
    }
    return stage.do(ContextGathered(stage.run.step.number + 1, answers))


def asking(*sources: ContextSource, **fields: Any) -> RunDefinition:
    return definition(tool("look"), sources=ordered(sources), **fields)


def test_a_step_waits_for_its_sources_and_begins_with_what_they_gave() -> None:  # C102
    stage = Stage(asking(function("news"), function("docs"), static("rules", "rules")))
    assert stage.kinds[-1] == "run_started"
    [effect] = wanted(stage.run)
    assert effect == AskContext(1, 0)
    gathered(stage, news=["it rains"], docs=["page 1", "page 2"])
    assert stage.kinds[-2:] == ["context_built", "model_requested"]
    built: ContextBuilt = stage.last("context_built")
    assert [text_of(message) for message in built.provided] == ["it rains", "page 1", "page 2"]
    assert [(each.source, each.messages) for each in built.outcomes] == [("news", 1), ("docs", 2)]
    assert built.tokens_by_source["docs"] == built.outcomes[1].tokens == tokens_of(built.provided[1:])
    window = compose(stage.run, (), "scripted/a")
    assert texts(window) == ["rules", "it rains", "page 1", "page 2", "hello"]


def test_each_step_asks_anew_and_a_crash_asks_for_nothing_that_was_given() -> None:  # C102
    stage = Stage(asking(function("news")))
    gathered(stage, news=["it rains"])
    before = compose(stage.run, (), "scripted/a").chat.SerializeToString(deterministic=True)
    stage.crash()
    assert not [effect for effect in wanted(stage.run) if isinstance(effect, AskContext)]
    assert compose(stage.run, (), "scripted/a").chat.SerializeToString(deterministic=True) == before
    stage.model("", ("look", "{}"))
    stage.tool()
    assert wanted(stage.run) == (AskContext(2, 0),)
    stage.crash()
    assert wanted(stage.run) == (AskContext(2, 0),)
    gathered(stage, news=["it snows"])
    assert texts(compose(stage.run, (), "scripted/a"))[0] == "it snows"
    stage.model("done")
    assert stage.state == "COMPLETED"


def test_a_source_that_may_be_skipped_is_and_the_run_says_why() -> None:  # C102
    stage = Stage(asking(function("news"), function("docs")))
    gathered(stage, news=Answer(reason="CONTEXT_SOURCE_FAILED", message="no answer within 5 s"), docs=["page"])
    built = stage.last("context_built")
    assert [each.skipped_reason for each in built.outcomes] == ["CONTEXT_SOURCE_FAILED", ""]
    assert texts(compose(stage.run, (), "scripted/a")) == ["page", "hello"]


def test_a_source_that_must_not_fail_ends_the_run() -> None:  # C102
    stage = Stage(asking(function("news"), function("docs", on_failure=FAIL)))
    gathered(stage, news=["it rains"], docs=Answer(reason="CONTEXT_SOURCE_FAILED", message="gone"))
    assert (stage.state, stage.reason) == ("FAILED", "CONTEXT_SOURCE_FAILED")
    assert "model_requested" not in stage.kinds


def test_a_source_that_was_forgotten_counts_as_failed() -> None:
    stage = Stage(asking(function("news", on_failure=FAIL)))
    gathered(stage)
    assert stage.reason == "CONTEXT_SOURCE_FAILED"


def test_answers_that_come_late_change_nothing() -> None:
    stage = Stage(asking(function("news")))
    gathered(stage, news=["it rains"])
    assert stage.do(ContextGathered(1, {"news": Answer((said("again"),))})) == []
    assert stage.do(ContextGathered(2, {"news": Answer((said("again"),))})) == []
    stage.cancel(force=True)
    assert stage.do(ContextGathered(2, {})) == []


def test_what_is_said_while_sources_are_asked_belongs_to_the_call() -> None:
    stage = Stage(asking(function("news")))
    stage.say("wait, this too")
    assert wanted(stage.run) == (AskContext(1, 0),)
    gathered(stage, news=["it rains"])
    assert texts(compose(stage.run, (), "scripted/a")) == ["it rains", "hello", "wait, this too"]


def test_a_daemon_that_stops_keeps_what_was_given_and_sends_nothing() -> None:  # C102
    stage = Stage(asking(function("news")))
    step = stage.run.step.number + 1
    stage.do(ContextGathered(step, {"news": Answer((said("it rains"),))}), is_draining=True)
    assert stage.kinds[-1] == "context_built"
    stage.do(Release())
    stage.crash()
    assert stage.kinds[-1] == "model_requested"
    assert texts(compose(stage.run, (), "scripted/a")) == ["it rains", "hello"]


def test_a_cancelled_run_asks_nobody() -> None:
    stage = Stage(asking(function("news")))
    stage.cancel()
    assert stage.state == "CANCELLED"
    assert wanted(stage.run) == ()


def test_nothing_is_asked_for_a_step_that_is_over_the_limit() -> None:
    stage = Stage(asking(function("news"), limits=Limits(max_steps=1)))
    gathered(stage, news=["it rains"])
    stage.model("", ("look", "{}"))
    stage.tool()
    assert stage.reason == "RUN_STEP_LIMIT"


def test_the_deadline_ends_a_run_whose_sources_are_asked() -> None:
    stage = Stage(asking(function("news")))
    stage.wait(3600)
    assert stage.state == "TIMED_OUT"
    assert stage.now_ns > T0


# --- limits of sources ---


def test_what_a_source_gives_is_cut_to_its_limits() -> None:  # C102
    source = function("docs", max_tokens=50)
    stage = Stage(asking(source))
    whole = ["one two three", "word " * 200, "never seen"]
    gathered(stage, docs=whole)
    built = stage.last("context_built")
    assert 30 <= built.outcomes[0].tokens <= 50
    assert built.outcomes[0].cut_tokens == tokens_of(map(said, whole)) - built.outcomes[0].tokens
    first, second = built.provided
    assert text_of(first) == "one two three"
    assert (whole[1]).startswith(text_of(second))


def test_a_share_is_of_the_first_models_window() -> None:  # C102
    limits = [ModelLimits(context_window_tokens=1_000)]
    pinned_to = asking(function("docs", max_share_percent=10), model_limits=limits)
    given = take(pinned_to, {"docs": Answer((said("word " * 1_000),))}, {})
    assert 80 <= given.outcomes[0].tokens <= 100
    unknown = take(asking(function("docs", max_share_percent=10)), {"docs": Answer((said("word " * 1_000),))}, {})
    assert unknown.outcomes[0].cut_tokens == 0


def test_what_sources_give_together_is_bounded() -> None:  # C102
    stage = Stage(asking(*(function(f"s{number}") for number in range(4))))
    gathered(stage, **{f"s{number}": ["x" * 900_000] for number in range(4)})
    built = stage.last("context_built")
    assert [each.skipped_reason for each in built.outcomes] == ["", "", *["CONTEXT_SOURCE_FAILED"] * 2]
    assert built.ByteSize() < 2_200_000


def test_a_static_text_is_cut_once_and_for_all() -> None:  # C102
    source = static("rules", "word " * 1_000, max_tokens=100, max_share_percent=50)
    assert pinned(source, ModelLimits()).cut_tokens > 900
    short = pinned(source, ModelLimits(context_window_tokens=100))
    assert len(short.text) < len(pinned(source, ModelLimits()).text)
    assert pinned(static("rules", "few words", max_tokens=100), ModelLimits()).text == "few words"


@given(st.text(max_size=300), st.integers(0, 60))
def test_a_text_is_cut_at_its_end_and_fits(text: str, limit: int) -> None:
    short = cut_text(text, limit)
    assert text.startswith(short)
    assert tokens_of([said(short)]) <= limit + 4 or short == text


def test_messages_that_do_not_fit_are_left_out_whole() -> None:
    picture = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="")), Part(text=TextPart(text="x" * 900))])
    assert cut([said("few"), picture], 20) == (said("few"),)
    assert cut([said("word " * 50)], 3) == ()
    assert cut([Message(role=Role.ROLE_USER)], 2) == ()
    assert cut([], 2) == ()


# --- calibration ---


def test_the_ratio_of_a_model_is_used_and_recorded() -> None:  # C078
    plain = Stage()
    stage = Stage(given={"calibration": {"scripted/a": 1500, "scripted/other": 2000}})
    assert list(stage.last("context_built").calibration_permille) == [1500]
    assert list(plain.last("context_built").calibration_permille) == []
    raw = plain.last("model_requested").reserve.input_tokens
    assert stage.last("model_requested").reserve.input_tokens == pytest.approx(raw * 1.5, abs=2)
    assert compose(stage.run, (), "scripted/a").raw_tokens == raw


def test_a_ratio_that_changes_leaves_the_open_step_alone() -> None:  # C078
    history = tuple(turns(60))
    given = {"history": history, "calibration": {"scripted/a": 2000}}
    stage = Stage(windowed(2_000), given=given)
    before = compose(stage.run, history, "scripted/a")
    stage.givens["calibration"] = {}
    stage.crash()
    after = compose(stage.run, history, "scripted/a")
    assert after.chat == before.chat
    assert len(after.chat.messages) < len(compose(Stage(windowed(2_000)).run, history, "scripted/a").chat.messages)


def test_each_model_of_a_run_has_its_own_ratio() -> None:  # C078
    given = Gathered(ratios=(1500, 500))
    pinned_to = definition(models=["m/a", "m/b"])
    assert [given.ratio(pinned_to, model) for model in ("m/a", "m/b", "m/c")] == [1500, 500, 1000]


def test_a_composition_is_the_same_from_log_alone() -> None:
    chance = random.Random(7)
    for _ in range(20):
        sources = ordered([function("news", max_tokens=chance.choice([0, 20])), static("rules", "rules")])
        pinned_to = windowed(chance.choice([300, 5_000]), sources=sources)
        history = tuple(turns(chance.randrange(8)))
        stage = Stage(pinned_to, given={"history": history, "calibration": {"scripted/a": chance.choice([700, 1300])}})
        gathered(stage, news=["n " * chance.randrange(1, 60)])
        hash_before = stage.last("model_requested").request_hash
        again = Stage.reopened(stage.log, pinned_to, stage.now_ns)
        data = compose(again.run, history, "scripted/a").chat.SerializeToString(deterministic=True)
        assert sha256(data).digest() == hash_before
