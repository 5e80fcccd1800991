"""Checks of fields: what passes, what is refused, and that the refusal names the field."""

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from behest.v1.daemon_service_pb2 import PauseTarget, SetPausedRequest
from behest.v1.run_state_pb2 import RunState
from behestd.errors import BehestError, InvalidRequest, TooLarge
from behestd.service import validate

STATES = RunState.DESCRIPTOR


def refused(check: Callable[[], object]) -> BehestError:
    """The refusal, which must name the field `field`."""
    with pytest.raises((InvalidRequest, TooLarge)) as caught:
        check()
    assert caught.value.metadata["field"] == "field"
    return caught.value


PASSES: dict[str, Callable[[], object]] = {
    "a text that is there": lambda: validate.required("field", "x"),
    "a message that is set": lambda: validate.required_message(SetPausedRequest(target=PauseTarget()), "target"),
    "a text at its limit": lambda: validate.max_bytes("field", "\u00e9" * 5, 10),
    "bytes at their limit": lambda: validate.max_bytes("field", b"x" * 10, 10),
    "a list at its limit": lambda: validate.max_items("field", [1, 2], 2),
    "a known value": lambda: validate.known("field", 1, STATES),
    "an unset value that may be": lambda: validate.known("field", 0, STATES, may_be_unset=True),
    "zero": lambda: validate.not_negative("field", 0),
    "an identifier of 64": lambda: validate.identifier("field", "aZ0_-" + "x" * 59),
    "no request id": lambda: validate.request_id("field", ""),
    "a request id of 128": lambda: validate.request_id("field", " ~" * 64),
    "JSON at its limit of depth": lambda: validate.json_value("field", "[" * 32 + "]" * 32),
    "brackets in a string": lambda: validate.json_value("field", '"' + "[" * 99 + '\\"{"'),
}
REFUSES: dict[str, Callable[[], object]] = {
    "an empty text": lambda: validate.required("field", ""),
    "a message that is not set": lambda: validate.required_message(SetPausedRequest(), "target", "field"),
    "a oneof of which none is set": lambda: validate.one_of(PauseTarget(), "target", "field"),
    "a text over its limit of bytes": lambda: validate.max_bytes("field", "\u00e9" * 6, 10),
    "bytes over their limit": lambda: validate.max_bytes("field", b"x" * 11, 10),
    "a list over its limit": lambda: validate.max_items("field", [1, 2, 3], 2),
    "a value of no name": lambda: validate.known("field", 999, STATES),
    "an unset value": lambda: validate.known("field", 0, STATES),
    "a negative number": lambda: validate.not_negative("field", -1),
    "an empty identifier": lambda: validate.identifier("field", ""),
    "an identifier of 65": lambda: validate.identifier("field", "x" * 65),
    "an identifier with a newline": lambda: validate.identifier("field", "abc\n"),
    "an identifier with a slash": lambda: validate.identifier("field", "a/b"),
    "an identifier of foreign letters": lambda: validate.identifier("field", "\u00e9"),
    "a request id of 129": lambda: validate.request_id("field", "x" * 129),
    "a request id with a control character": lambda: validate.request_id("field", "a\tb"),
    "a request id of foreign letters": lambda: validate.request_id("field", "\u00e9"),
    "too many labels": lambda: validate.labels("field", {str(n): "" for n in range(33)}),
    "a label without a key": lambda: validate.labels("field", {"": "x"}),
    "a label key over its limit": lambda: validate.labels("field", {"\u00e9" * 129: "x"}),
    "a label value over its limit": lambda: validate.labels("field", {"x": "\u00e9" * 129}),
    "a negative duration": lambda: validate.duration("field", Duration(seconds=-1)),
    "a duration negative by nanos": lambda: validate.duration("field", Duration(nanos=-1)),
    "a duration of two signs": lambda: validate.duration("field", Duration(seconds=1, nanos=-1)),
    "a duration of too many nanos": lambda: validate.duration("field", Duration(nanos=10**9)),
    "a duration over a year": lambda: validate.duration("field", Duration(seconds=367 * 86_400)),
    "a duration over its own limit": lambda: validate.duration("field", Duration(seconds=11), 10),
    "a time of negative nanos": lambda: validate.timestamp_ns("field", Timestamp(nanos=-1)),
    "a time of too many nanos": lambda: validate.timestamp_ns("field", Timestamp(nanos=10**9)),
    "a time before the year 1": lambda: validate.timestamp_ns("field", Timestamp(seconds=-(2**62))),
    "a time after the year 9999": lambda: validate.timestamp_ns("field", Timestamp(seconds=2**62)),
    "JSON over its limit of bytes": lambda: validate.json_value("field", '"' + "x" * 10 + '"', 10),
    "JSON over its limit of depth": lambda: validate.json_value("field", "[" * 33 + "]" * 33),
    "a bomb of brackets": lambda: validate.json_value("field", "[" * 1_000_000),
    "a bomb of mixed brackets": lambda: validate.json_value("field", '[{"a":' * 100_000),
    "a key twice": lambda: validate.json_value("field", '{"a": 1, "\\u0061": 2}'),
    "NaN": lambda: validate.json_value("field", "[NaN]"),
    "a number of too many digits": lambda: validate.json_value("field", "9" * 5000),
    "no JSON": lambda: validate.json_value("field", "{"),
    "an empty text as JSON": lambda: validate.json_value("field", ""),
    "JSON that is no object": lambda: validate.json_object("field", "[]"),
}


@pytest.mark.parametrize("check", PASSES.values(), ids=PASSES.keys())
def test_what_keeps_the_rule_passes(check: Callable[[], object]) -> None:
    check()


@pytest.mark.parametrize("check", REFUSES.values(), ids=REFUSES.keys())
def test_what_breaks_the_rule_is_refused_by_the_name_of_its_field(check: Callable[[], object]) -> None:
    assert refused(check).reason in {"REQUEST_INVALID", "REQUEST_TOO_LARGE"}


def test_a_text_over_its_limit_is_told_with_size_and_limit() -> None:
    error = refused(lambda: validate.max_bytes("field", "\u00e9" * 6, 10))
    assert (error.reason, error.metadata) == (
        "REQUEST_TOO_LARGE",
        {"field": "field", "sizeBytes": "12", "limitBytes": "10"},
    )


def test_values_come_back_in_the_form_that_the_daemon_uses() -> None:
    assert validate.one_of(PauseTarget(all=True), "target") == "all"
    assert validate.labels("field", {"a": "1"}) == {"a": "1"}
    assert validate.duration("field", Duration(seconds=1, nanos=500_000_000)) == 1.5
    assert validate.timestamp_ns("field", Timestamp(seconds=1_700_000_000, nanos=7)) == 1_700_000_000_000_000_007
    assert validate.timestamp_ns("field", Timestamp(seconds=-1)) == -1_000_000_000
    for far, seconds in ((1, 253_402_300_799), (-1, -62_135_596_800)):
        assert validate.timestamp_ns("field", Timestamp(seconds=seconds)) == far * (2**63 - 1), "what a store holds"
    assert validate.json_object("field", '{"id": 12345678901234567890}') == {"id": 12345678901234567890}


def test_errors_from_within_are_named_as_the_request_has_them() -> None:
    with pytest.raises(InvalidRequest) as caught, validate.within("server"):
        validate.identifier("name", "a b")
    assert caught.value.violations[0][0] == caught.value.metadata["field"] == "server.name"
    assert caught.value.message.startswith("server.name: ")
