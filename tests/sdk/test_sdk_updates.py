"""The client's rules of a watch, without any I/O: what is new in a frame, and what is taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from behest.updates import Discarded, Follower, Speech
from behest.v1 import chat_service_pb2, delta_pb2, run_service_pb2, tool_pb2
from tests.sdk.daemon import BEGIN, RUN_ID, TOOL_COMPLETED, TOOL_STARTED, Script, completed, requested

WORDS = ["one ", "two ", "", "three ", "four"]


def frame(script: Script) -> run_service_pb2.WatchRunResponse:
    """Return a script's events and deltas as one frame."""
    response = run_service_pb2.WatchRunResponse()
    for tick in script.ticks:
        for item in tick:
            (response.deltas if isinstance(item, delta_pb2.Delta) else response.events).append(item)
    return response


def begun() -> Follower:
    """Return a follower that has seen the first model attempt begin."""
    follower = Follower("", 0)
    list(follower.apply(frame(Script().events(*BEGIN).events(requested(1, 1)))))
    assert follower.run_id == RUN_ID
    return follower


def text_frame(pieces: list[str], *, attempt: int = 1) -> run_service_pb2.WatchRunResponse:
    """Return a frame of text deltas."""
    return frame(Script().deltas(*pieces, attempt=attempt))


def texts(updates: list[object]) -> str:
    """Return the text that deltas among updates show."""
    return "".join(update.text for update in updates if isinstance(update, delta_pb2.Delta))


# I16
@given(st.lists(st.tuples(st.integers(0, 19), st.booleans()), max_size=8), st.lists(st.integers(1, 5), max_size=6))
def test_text_that_streams_repeat_and_merge_differently_is_shown_once(
    plans: list[tuple[int, bool]], sizes: list[int]
) -> None:
    whole = "".join(WORDS)
    follower, speech, shown, reached = begun(), Speech(), "", 0
    for end, is_new_stream in plans:
        reached = max(reached, min(end, len(whole)))
        if is_new_stream:
            follower.reopened()
            start = 0
        else:
            start = len(shown)
        # The same characters, cut into pieces in another way each time.
        pieces, at = [], start
        for size in [*sizes, reached]:
            pieces.append(whole[at : min(at + size, reached)])
            at = min(at + size, reached)
        updates = list(follower.apply(text_frame(pieces)))
        assert not any(isinstance(update, Discarded) for update in updates)
        shown += "".join(speech.take(update) for update in updates)
        assert shown == whole[:reached]
    end_frame = run_service_pb2.WatchRunResponse()
    end_frame.CopyFrom(frame(Script().events(*BEGIN).events(requested(1, 1)).events(completed(1, 1, whole))))
    del end_frame.events[:4]
    shown += "".join(speech.take(update) for update in follower.apply(end_frame))
    assert shown == whole


def test_a_higher_attempt_takes_back_the_text_of_the_lower_one() -> None:
    follower = begun()
    assert texts(list(follower.apply(text_frame(["one "])))) == "one "
    updates = list(follower.apply(text_frame(["ONE "], attempt=2)))
    assert updates[0] == Discarded(1, 1)
    assert texts(updates[1:]) == "ONE "
    # What still comes of the lower attempt is dropped.
    assert list(follower.apply(text_frame(["two"]))) == []


def test_an_attempt_that_another_process_goes_on_with_is_shown_from_there() -> None:
    follower = begun()
    list(follower.apply(text_frame(["one ", "two "])))
    follower.reopened()
    updates = list(follower.apply(text_frame(["three "])))
    assert updates[0] == Discarded(1, 1)
    assert texts(updates[1:]) == "three "


def test_deltas_of_an_attempt_that_is_over_are_dropped() -> None:
    follower = begun()
    script = Script().events(*BEGIN).events(requested(1, 1)).events(completed(1, 1, "one"), TOOL_STARTED)
    end = frame(script)
    del end.events[:4]
    list(follower.apply(end))
    assert list(follower.apply(text_frame(["late"]))) == []


def test_a_tool_call_is_shown_with_its_name_once() -> None:
    def piece(name: str, arguments: str) -> run_service_pb2.WatchRunResponse:
        call = chat_service_pb2.ToolCallDelta(name=name, arguments_json=arguments)
        return run_service_pb2.WatchRunResponse(deltas=[delta_pb2.Delta(step=1, attempt=1, part=1, tool_call=call)])

    follower = begun()
    assert [update.tool_call.name for update in follower.apply(piece("add", ""))] == ["add"]  # type: ignore[union-attr]
    list(follower.apply(piece("", '{"a":')))
    follower.reopened()
    again = list(follower.apply(piece("add", '{"a": 1')))
    assert len(again) == 1
    assert isinstance(again[0], delta_pb2.Delta)
    assert (again[0].tool_call.name, again[0].tool_call.arguments_json) == ("", " 1")


def test_progress_of_a_tool_is_told_once_and_the_latest_counts() -> None:
    def told(index: int) -> run_service_pb2.WatchRunResponse:
        progress = tool_pb2.Progress(text=str(index))
        delta = delta_pb2.Delta(step=1, attempt=1, call_id="call_1", index=index, tool_progress=progress)
        return run_service_pb2.WatchRunResponse(deltas=[delta])

    follower = begun()
    assert len(list(follower.apply(told(0)))) == 1
    follower.reopened()
    assert list(follower.apply(told(0))) == []
    assert len(list(follower.apply(told(3)))) == 1
    done = frame(Script().events(*BEGIN).events(requested(1, 1)).events(TOOL_COMPLETED))
    del done.events[:4]
    assert len(list(follower.apply(done))) == 1
