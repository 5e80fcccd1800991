"""Reading JSON of strangers: what it holds is measured without a parser, each character looked at once."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behestd.tools.json_text import MAX_BYTES, MAX_VALUES, JsonRefused, read

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth_of(each) for each in inner), default=0)


def marks_of(value: Any) -> int:
    """How many brackets and commas the text of a value has outside of its strings."""
    if not isinstance(value, dict | list):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return 2 + max(len(inner) - 1, 0) + sum(marks_of(each) for each in inner)


@given(VALUES, st.booleans())
def test_depth_and_values_are_those_of_the_document_whatever_its_strings_hold(value: Any, is_ascii: bool) -> None:
    document = read(json.dumps(value, ensure_ascii=is_ascii), max_depth=100)
    assert document.value == value
    assert (document.depth, document.values) == (depth_of(value), marks_of(value) + 1)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('"' + "x" * (MAX_BYTES - 2) + '"', id="one long string"),
        pytest.param('"' + '\\"' * (MAX_BYTES // 2 - 2) + '"', id="a string of escaped quotes"),
        pytest.param('"' + '\\"' * (MAX_BYTES // 2 - 2), id="escaped quotes and no end"),
        pytest.param('"' + "x" * (MAX_BYTES - 2), id="a string without an end"),
        pytest.param('"' + "\\\\" * (MAX_BYTES // 2 - 2) + "\\", id="backslashes and no end"),
        pytest.param('"' * MAX_BYTES, id="nothing but quotes"),
        pytest.param('"",' * (MAX_BYTES // 3), id="many empty strings"),
        pytest.param("[]" * (MAX_BYTES // 2), id="many lists"),
        pytest.param("," * MAX_BYTES, id="nothing but commas"),
        pytest.param('{"' * (MAX_BYTES // 2), id="objects that begin"),
    ],
)
def test_a_megabyte_of_anything_is_measured_in_one_go(text: str) -> None:  # security S12
    begun = time.process_time()
    try:
        read(text)
    except JsonRefused:
        pass
    # A look at each character for each quote would be hours.
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 33 + "]" * 33, "nesting exceeds the limit of 32 levels"),
        ("[" * MAX_BYTES, "nesting exceeds the limit of 32 levels"),
        ("[" + "1," * MAX_VALUES + "1]", f"more than {MAX_VALUES} values"),
        ('["' + '\\"[[[[' * 10 + '"', "no JSON"),
        ('{"a": 1, "a": 2}', "duplicate key"),
        ('"\\ud800"', "half a surrogate"),
        ("NaN", "NaN is no JSON"),
        ("1" * 5_000, "too many digits"),
    ],
)
def test_what_is_not_taken_is_refused_with_the_problem(text: str, problem: str) -> None:
    with pytest.raises(JsonRefused, match=problem):
        read(text)
