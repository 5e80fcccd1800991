"""Frames are cut and joined without a parser, and agree with one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behest.v1 import run_service_pb2
from behestd.log import frames
from tests.log.items import Script, sequences


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=6), st.integers(0, 8))
def test_a_frame_is_what_protobuf_writes_and_is_cut_at_events(sizes: list[int], count: int) -> None:
    message = run_service_pb2.WatchRunResponse()
    for number, size in enumerate(sizes, start=1):
        message.events.add(sequence=number, event_id="x" * size)
    serialized = [event.SerializeToString() for event in message.events]
    frame = frames.frame(serialized)
    assert frame == message.SerializeToString()
    assert frames.split(frame) == serialized
    assert sequences(frames.skip(frame, count)) == list(range(count + 1, len(sizes) + 1))


def test_joining_chunks_starts_after_the_cursor() -> None:
    run = Script()
    chunks = [run.append(events).chunk for events in (2, 3, 1)]
    assert frames.join([], 0) == b""
    assert frames.join(chunks[:1], 0) is chunks[0].data, "one whole chunk is not copied"
    assert [sequences(frames.join(chunks, after)) for after in range(2)] == [[1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6]]
    assert sequences(frames.join(chunks[1:], 3)) == [4, 5, 6]


@pytest.mark.parametrize("data", [b"\x12\x00", b"\x0a", b"\x0a\x80", b"\x0a\x05abc", b"\x0a\xff\xff\xff\xff\xff\x01"])
def test_a_malformed_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        frames.split(data)
