"""The decoder of server-sent events: any chopping, any line ends, comments, and limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behestd.providers import sse
from behestd.providers.sse import Decoder, ServerEvent, TooLong
from tests.providers.replay import fixture, split

LINES = st.lists(
    st.sampled_from([b"data: a", b"data:\xf0\x9f\xa6\x9c", b": c", b"event: e", b"id: 1", b"data", b""]), max_size=12
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def decoded(*chunks: bytes) -> list[ServerEvent]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


# C012, C013
@pytest.mark.parametrize(
    "name,count", [("text.sse", 7), ("mixed.sse", 7), ("anthropic/text.sse", 10), ("anthropic/mixed.sse", 10)]
)
def test_a_cut_at_any_byte_changes_nothing(name: str, count: int) -> None:
    data = fixture(name)
    whole = decoded(data)
    assert len(whole) == count
    assert all(decoded(*split(data, position)) == whole for position in range(len(data)))
    assert decoded(*(data[at : at + 1] for at in range(len(data)))) == whole


@given(st.lists(st.tuples(LINES, ENDS), max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_any_chopping_of_any_stream_gives_the_same_events(
    blocks: list[tuple[list[bytes], bytes]], cuts: list[int]
) -> None:
    data = b"".join(line + end for lines, end in blocks for line in [*lines, b""])
    positions = sorted({cut for cut in cuts if cut < len(data)})
    assert decoded(*split(data, *positions)) == decoded(data)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise_than_told(data: bytes) -> None:
    try:
        decoded(data)
    except UnicodeDecodeError:
        assert not data.isascii()


def test_lines_of_data_are_joined_and_names_kept() -> None:
    assert decoded(b"event: x\ndata: a\ndata:b\n\ndata:  c\n\n") == [
        ServerEvent("x", "a\nb"),
        ServerEvent("message", " c"),
    ]


def test_an_event_without_its_blank_line_is_dropped() -> None:
    assert decoded(b"data: a\n\ndata: b\n") == [ServerEvent("message", "a")]


@pytest.mark.parametrize("line", [b"\xffata: a", b"event\xff: a", b": \xff", b"data: \xf0\x9f\xa6"])
def test_a_line_that_is_no_utf_8_does_not_vanish(line: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded(line + b"\n")


def test_an_event_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 10)
    for chunks in ([b"data: " + b"a" * 20], [b"data: abcd\n"] * 4):
        with pytest.raises(TooLong):
            decoded(*chunks)
