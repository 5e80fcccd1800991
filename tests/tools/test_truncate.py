"""Cutting a tool's text to what a model is told."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behestd.tools.truncate import Limits, cut, is_over

TEXTS = st.lists(st.text(st.sampled_from("aé漢🙂\n "), max_size=40), max_size=60).map("\n".join)


def lines(text: str) -> int:
    return text.count("\n") + (0 if text.endswith("\n") or not text else 1)


@given(text=TEXTS, max_lines=st.integers(3, 30), max_bytes=st.integers(512, 2_000), repeat=st.integers(1, 8))
def test_a_cut_text_is_within_its_limits_and_keeps_head_and_tail(
    text: str, max_lines: int, max_bytes: int, repeat: int
) -> None:  # C035
    text *= repeat
    limits = Limits(max_lines, max_bytes)
    told = cut(text, "artifact-1", limits)
    assert len(told.encode()) <= max_bytes
    assert lines(told) <= max_lines
    if not is_over(text, limits):
        assert told == text
        return
    head, separator, rest = told.partition("\n[… ")
    marker, end, tail = rest.partition(" …]\n")
    assert separator
    assert end
    assert "artifact artifact-1" in marker
    assert text.startswith(head)
    assert text.endswith(tail)
    left_bytes = int(marker.split(" lines, ")[1].split(" bytes")[0])
    # The line feed that ended the head has become the first of the marker.
    kept = len(head.encode()) + len(tail.encode())
    assert kept + left_bytes in (len(text.encode()), len(text.encode()) - 1)


def test_a_hundred_thousand_lines_are_cut_in_milliseconds() -> None:  # C035
    text = "".join(f"line {number} of a very long output\n" for number in range(100_000))
    began = time.process_time()
    told = cut(text, "artifact-1")
    assert time.process_time() - began < 0.5
    assert told.startswith("line 0 of")
    assert told.endswith("line 99999 of a very long output\n")
    assert len(told.encode()) <= 50 * 1024
    assert lines(told) <= 2_000


def test_one_endless_line_is_cut_within_itself_by_bytes_and_not_by_characters() -> None:  # C035
    told = cut("🙂" * 100_000, "")
    assert len(told.encode()) <= 50 * 1024
    assert set(told.partition("\n")[0]) == {"🙂"}
    assert "the whole was not kept" in told


def test_a_text_that_fits_is_told_as_it_is() -> None:
    text = "x" * (50 * 1024)
    assert cut(text, "artifact-1") == text
    assert is_over(text + "x")


def test_limits_without_room_for_the_marker_are_refused() -> None:
    with pytest.raises(ValueError):
        Limits(2, 10_000)
